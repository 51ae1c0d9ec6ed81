"""qmpsnapd: settings, log, sockets, domains; then it serves until it is told to stop."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
from collections.abc import Sequence

import structlog
import trio

import qmpsnap
from qmpsnap import config, errors, paths
from qmpsnap.own import inventory
from qmpsnap.server import app, bus, http, listen, show
from qmpsnap.talk import files, store, systemd

_log = structlog.stdlib.get_logger("qmpsnap.daemon")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the daemon; the exit status."""
    options = _parser().parse_args(arguments)
    _configure_log(options.log_level.upper())
    where = paths.find(os.environ, os.getuid())
    try:
        settings = _settings(where)
        home = store.Store(where)
        home.prepare()
        held = files.lock(where.lock)
        home.clean()
        home.claim(take_over=options.take_over)
    except errors.Error as error:
        print(f"error: {error}", file=sys.stderr)
        return error.status
    status = 0
    try:
        trio.run(_serve, home, settings)
    except* errors.Error as group:
        print(f"error: {group.exceptions[0]}", file=sys.stderr)
        status = 1
    finally:
        os.close(held)
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "qmpsnapd", description="Snapshots of QEMU machines that run without libvirt."
    )
    parser.add_argument("--version", action="version", version=f"qmpsnapd {qmpsnap.__version__}")
    parser.add_argument(
        "--take-over",
        action="store_true",
        help="make the state directory of another host this host's, once: nobody else may use it",
    )
    parser.add_argument("--log-level", default="info", choices=["debug", "info", "warning", "error"])
    return parser


def _settings(where: paths.Paths) -> config.Settings:
    try:
        with open(where.settings, encoding="utf-8") as file:
            return config.settings(file.read(), where.settings)
    except FileNotFoundError:
        return config.Settings()
    except (OSError, UnicodeDecodeError) as error:
        raise errors.ConfigError(file=where.settings, key="", reason=str(error)) from error


def _configure_log(level: str) -> None:
    """One line for one change of state: on a terminal for people, else as key=value with the journal's priority."""
    logging.basicConfig(level=level, stream=sys.stderr, format="%(message)s")
    # Late replies are normal for us; qemu.qmp would report each (facts/stack.md 1).
    logging.getLogger("qemu").setLevel(logging.CRITICAL)
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.stdlib.filter_by_level,
            structlog.stdlib.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.LogfmtRenderer(
                key_order=["timestamp", "level", "event", "domain", "operation", "job"], drop_missing=True
            ),
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )


async def _serve(home: store.Store, settings: config.Settings) -> None:
    domains = inventory.Inventory(home, settings)
    events = bus.Bus()
    domains.watch(
        lambda name: (
            events.publish("domain", show.domain_object(domains.domains[name]))
            if name in domains.domains
            else None
        )
    )
    domains.operations.watch(lambda operation: events.publish("operation", operation.wire()))
    listeners = _listeners(home.paths, settings)
    stop = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_wait_for_signal, stop)
        await nursery.start(domains.run)
        async with trio.open_nursery() as serving:
            serving.start_soon(_watchdog)
            serving.start_soon(_serve_http, app.Api(domains, events), listeners, stop, serving.cancel_scope)
        nursery.cancel_scope.cancel()


async def _serve_http(
    api: app.Api, listeners: list[trio.SocketListener], stop: trio.Event, scope: trio.CancelScope
) -> None:
    systemd.notify("READY=1")
    _log.info("Serving", version=qmpsnap.__version__)
    await http.serve(api.app(), listeners, stop=stop)
    scope.cancel()


def _listeners(where: paths.Paths, settings: config.Settings) -> list[trio.SocketListener]:
    """systemd's socket, or our own with the group that may use it."""
    passed = listen.activated(os.environ)
    if passed:
        return [listener for found in passed.values() for listener in found]
    return [listen.listen(where.socket, 0o660, settings.group or None)]


async def _wait_for_signal(stop: trio.Event) -> None:
    """Stopping is a crash that we planned: nothing is undone on the way out, the journal has it."""
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async for number in signals:
            _log.info("Stopping", signal=signal.Signals(number).name)
            systemd.notify("STOPPING=1")
            stop.set()
            return


async def _watchdog() -> None:
    interval = systemd.watchdog_interval()
    while interval is not None:
        systemd.notify("WATCHDOG=1")
        await trio.sleep(interval)


if __name__ == "__main__":
    sys.exit(main())
