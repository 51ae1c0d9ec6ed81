"""QMP replies read as disks: what the real QEMU's layouts do not show by themselves."""

from __future__ import annotations

from typing import Any

from qmpsnap.model import chain, observe

BLK = "/machine/peripheral/x/virtio-backend"


def _graph(
    *edges: tuple[str, str, str], jobs: tuple[str, ...] = (), devices: tuple[str, ...] = ()
) -> observe.Graph:
    names = sorted({name for parent, _role, child in edges for name in (parent, child)})
    kind = {
        n: "block-job" if n in jobs else "block-backend" if n in devices else "block-driver" for n in names
    }
    return observe.graph(
        {
            "nodes": [{"id": names.index(n), "name": n, "type": kind[n]} for n in names],
            "edges": [{"parent": names.index(p), "name": r, "child": names.index(c)} for p, r, c in edges],
        }
    )


def test_chain_by_edges() -> None:
    """Backing edges lead down; a filter's file child is the layer below it; storage is no layer."""
    graph = _graph(
        ("vda", "root", "throttle"), ("throttle", "file", "top"), ("top", "file", "top-file"),
        ("top", "backing", "base"), ("base", "file", "base-file"), ("j", "main node", "top"),
        jobs=("j",), devices=("vda",),
    )  # fmt: skip

    assert graph.below("throttle") == ["throttle", "top", "base"]
    assert graph.backing("base") is None
    assert graph.jobs == {"j": frozenset({"top"})}
    assert "vda" not in graph.nodes


def test_a_cycle_ends() -> None:
    """A graph that cannot be does not hang the look."""
    assert _graph(("a", "backing", "b"), ("b", "backing", "a")).below("a") == ["a", "b"]


def test_storage_names() -> None:
    """Plain names stay; json: names are looked into; what names no file is ""."""
    assert observe.storage("/a b,c") == "/a b,c"
    assert observe.storage('json:{"driver":"qcow2","file":{"driver":"file","filename":"/x"}}') == "/x"
    assert observe.storage('json:{"driver":"qcow2","file.filename":"/y"}') == "/y"
    assert observe.storage('json:{"driver":"nbd"}') == ""
    assert observe.storage("json:{broken") == ""


def _block(**inserted: Any) -> list[dict[str, Any]]:
    image = {"filename": "/i/a", "format": "qcow2", "virtual-size": 1, **inserted.pop("image", {})}
    row = {
        "qdev": BLK,
        "device": "d0",
        "inserted": {"ro": False, "image": image, "detect_zeroes": "off", **inserted},
    }
    return [row]


def _disk(
    block: list[dict[str, Any]], command: tuple[str, ...] = (), kind: str = "virtio-blk-device"
) -> chain.Disk:
    stats = [{"qdev": BLK, "node-name": "n0"}]
    (disk,) = observe.disks(block, stats, {BLK: observe.Device(kind)}, (), command, str)
    return disk


def test_options_come_from_the_command_line() -> None:
    """aio and discard, which no query shows, are read where QEMU was told them."""
    command = ("qemu", "-drive", "file=/i/a,if=none,id=d0,aio=native,discard=unmap")

    assert _disk(_block(), command).options == chain.BlockOptions("off", "native", "unmap")
    assert _disk(_block(), ("qemu", "-drive", "id=other,aio=native")).options.aio == ""


def test_refusals() -> None:
    """Encrypted disks and temporary layers are refused, read-only ones and drives without medium left out."""
    encrypted = _block(image={"format-specific": {"data": {"encrypt": {"format": "luks"}}}})
    empty = [{"qdev": BLK, "device": "d0"}]
    (gone,) = observe.disks(
        _block(), [], {BLK: observe.Device("virtio-blk-device")}, (), (), lambda _name: ""
    )

    assert "encrypted" in _disk(encrypted).refused
    assert "snapshot=on" in gone.refused
    assert _disk(_block(ro=True)).skipped == "is read-only"
    assert _disk(empty).skipped == "drive is empty"
    assert _disk(_block(), kind="scsi-cd").skipped == "is a cdrom"


def test_two_queries_that_show_different_chains_are_not_believed() -> None:
    """Somebody took a snapshot, or ended a pull, between query-block and query-blockstats."""
    block = _block(**{"node-name": "n0"}, image={"backing-image": {"filename": "/i/b"}})
    below = {"node-name": "n1"}

    assert observe.consistent(block, [{"qdev": BLK, "node-name": "n0", "backing": below}])
    assert not observe.consistent(block, [{"qdev": BLK, "node-name": "n0"}])
    assert not observe.consistent(
        block, [{"qdev": BLK, "node-name": "new", "backing": {**below, "backing": {}}}]
    )
    assert not observe.consistent(block, [])
