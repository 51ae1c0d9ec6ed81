"""The trash beside other operations: an image that one of them uses is not moved, and while one is moved nobody begins to use."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path

import pytest

from qmpsnap import config, errors, paths
from qmpsnap.model import images, qcow2
from qmpsnap.own import carry, operations, trashcan
from qmpsnap.talk import images as lookers
from qmpsnap.talk import journal, store


class Host:
    """An overlay over a base in a known directory; ``seen`` is called at every look."""

    def __init__(self, directory: Path) -> None:
        self.images = directory / "i"
        self.images.mkdir()
        self.file = str(self.images / "over")
        layout = qcow2.empty_overlay(b"/none", "raw", 1 << 20)
        data = bytearray(layout.length)
        for offset, part in layout.parts:
            data[offset : offset + len(part)] = part
        Path(self.file).write_bytes(data)
        where = paths.Paths(*(str(directory / name) for name in ("state", "run", "config")))
        home_store = store.Store(where)
        home_store.prepare()
        settings = config.Settings(image_dirs=(str(self.images),))
        self.home = carry.Home(
            home_store,
            journal.Journal(where),
            operations.Operations(where.outcomes),
            settings,
            changed=lambda _name: None,
            graph=self.graph,
        )
        self.seen: Callable[[], None] = lambda: None
        self.trash = trashcan.Trashcan(self.home, self.graph, recorded=list, operations=list)

    async def graph(self, folders: Collection[str] = ()) -> images.Graph:
        self.seen()
        return lookers.Looker().graph([], [*self.home.settings.image_dirs, *folders])

    def busy(self) -> str:
        """Who keeps another operation from the file."""
        with pytest.raises(errors.ImageBusy) as caught:
            self.home.claims.take("k2", "iris", {self.file}, ())
        return str(caught.value)

    def there(self) -> bool:
        return Path(self.file).exists()

    def free(self) -> None:
        self.home.claims.take("k2", "iris", {self.file}, ())
        self.home.claims.drop("k2")


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


async def test_an_operation_keeps_its_image(host: Host) -> None:
    """Alone or shared: it is not removed, and its name is not taken by what comes back."""
    host.home.claims.take("k1", "daisy", (), {host.file})
    with pytest.raises(errors.ImageBusy, match="used by the operation k1 of domain 'daisy'"):
        await host.trash.remove([host.file])
    assert host.there()
    host.home.claims.drop("k1")

    (removed,) = (await host.trash.remove([host.file])).done
    host.home.claims.take("k1", "daisy", {host.file}, ())
    with pytest.raises(errors.ImageBusy, match="used by the operation k1 of domain 'daisy'"):
        await host.trash.restore(removed.id)
    host.home.claims.drop("k1")
    await host.trash.restore(removed.id)
    host.free()


async def test_nobody_begins_meanwhile(host: Host) -> None:
    """From the last look on the image is ours; and not any more once it is done, or has failed."""
    told: list[str] = []

    def second() -> None:
        told.append(host.busy())

    def first() -> None:
        host.free()
        host.seen = second

    host.seen = first
    (removed,) = (await host.trash.remove([host.file])).done
    assert len(told) == 1
    assert " of the trash, which is not finished yet" in told[0]
    host.free()
    await host.trash.restore(removed.id)

    def gone() -> None:
        Path(host.file).unlink()

    def then() -> None:
        host.seen = gone

    host.seen = then
    with pytest.raises(errors.NotOrphan, match="No such file or directory"):
        await host.trash.remove([host.file])
    host.free()
