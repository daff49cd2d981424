"""The layer of volatility3: memory that is there, and memory that is not."""

from __future__ import annotations

import copy
import importlib
import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from oracles import judges
from oracles.kdump import Kdump
from oracles.kdump_builder import Build, build_kdump

import vmdump
from vmdump.integrations.folders import FOLDERS

PAGE = 4096
LAST = 40
EXCLUDED = range(8, 12)
HOLE = range(20, 32)


@pytest.fixture(scope="module")
def plugin() -> Any:
    """The module as volatility imports it: one of its own plugins."""
    judges.require("volatility3")
    import volatility3.framework
    import volatility3.plugins

    volatility3.plugins.__path__ = [FOLDERS["volatility3"], *volatility3.plugins.__path__]
    assert not volatility3.framework.import_file("volatility3.plugins.vmdump_layer", "")
    return importlib.import_module("volatility3.plugins.vmdump_layer")


def page(pfn: int) -> bytes:
    return (b"page %06d " % pfn * PAGE)[:PAGE]


@pytest.fixture
def pages() -> dict[int, bytes]:
    return {pfn: page(pfn) for pfn in range(LAST) if pfn not in EXCLUDED and pfn not in HOLE}


@pytest.fixture
def dump(pages: dict[int, bytes], tmp_path: Path) -> Path:
    """A file with excluded pages and a hole."""
    stored = {pfn: pages.get(pfn) for pfn in range(LAST) if pfn not in HOLE}
    (tmp_path / "guest.kdump").write_bytes(build_kdump(Build(stored)))
    return tmp_path / "guest.kdump"


def stack(plugin: Any, location: str) -> tuple[Any, Any]:
    """Give a context, and the layer that is stacked on the location."""
    from volatility3.framework import contexts
    from volatility3.framework.layers import physical

    context = contexts.Context()
    context.config["base.location"] = location
    base = physical.FileLayer(context, "base", "base")
    context.add_layer(base)
    layer = plugin.VmdumpStacker.stack(context, "base")
    base.destroy()
    if layer is not None:
        context.add_layer(layer)
    return context, layer


def test_memory(plugin: Any, dump: Path, pages: dict[int, bytes]) -> None:
    from volatility3.framework.exceptions import InvalidAddressException, LayerException

    _, layer = stack(plugin, f"file://{dump}")
    assert (layer.minimum_address, layer.maximum_address) == (0, LAST * PAGE - 1)
    assert layer.read(PAGE - 5, 10) == page(0)[-5:] + page(1)[:5]
    everything = b"".join(pages.get(pfn, bytes(PAGE)) for pfn in range(LAST))
    assert layer.read(0, LAST * PAGE, pad=True) == everything
    assert layer.read(LAST * PAGE - 4, 100, pad=True) == everything[-4:] + bytes(96)
    with pytest.raises(InvalidAddressException, match="was excluded when the dump was made") as caught:
        layer.read(7 * PAGE, 2 * PAGE)
    assert (caught.value.layer_name, caught.value.invalid_address) == (layer.name, 8 * PAGE)
    with pytest.raises(InvalidAddressException, match="no memory at guest-physical address 0x14000"):
        layer.read(20 * PAGE - 1, 2)
    for begin, size, valid in (
        *((0, 1, True), (0, 8 * PAGE, True), (7 * PAGE, PAGE + 1, False), (9 * PAGE, 1, False)),
        *((12 * PAGE, 8 * PAGE, True), (12 * PAGE, 8 * PAGE + 1, False), (LAST * PAGE - 1, 1, True)),
        *((LAST * PAGE, 1, False), (-1, 1, False), (1 << 70, 1, False)),
    ):
        assert layer.is_valid(begin, size) is valid, (begin, size)
    with pytest.raises(LayerException):
        layer.write(0, b"x")


def test_scans_leave_out_what_is_not_there(plugin: Any, dump: Path, pages: dict[int, bytes]) -> None:
    from volatility3.framework.layers.scanners import BytesScanner

    context, layer = stack(plugin, f"file://{dump}")
    found = list(layer.scan(context, BytesScanner(b"page 000033 page 000033 ")))
    assert found[0] == 33 * PAGE
    starts = {at // PAGE for at in layer.scan(context, BytesScanner(b"page 0"))}
    assert starts == pages.keys()


def test_damaged_page(plugin: Any, dump: Path, pages: dict[int, bytes]) -> None:
    from volatility3.framework.exceptions import InvalidAddressException

    kdump = Kdump(dump)
    offset = int(kdump.descriptors["offset"][np.flatnonzero(kdump.pfns == 33)[0]])
    with dump.open("r+b") as file:
        file.seek(offset)
        file.write(b"\xff" * 8)
    _, layer = stack(plugin, f"file://{dump}")
    with pytest.raises(InvalidAddressException):
        layer.read(33 * PAGE, 8)
    padded = layer.read(32 * PAGE, 3 * PAGE, pad=True)
    assert padded == page(32) + bytes(PAGE) + page(34)


def test_other_sources(plugin: Any, dump: Path, tmp_path: Path) -> None:
    vmdump.convert(dump, tmp_path / "flattened", format="kdump-zlib", layout="flattened")
    vmdump.convert(dump, tmp_path / "part", format="kdump-zlib", split=2)
    _, truth = stack(plugin, f"file://{dump}")
    for location in (
        f"file://{tmp_path}/flattened",
        f"vmdump:{tmp_path}/part.1;{tmp_path}/part.2",
        f"vmdump:{dump}",
    ):
        _, layer = stack(plugin, location)
        assert layer.read(0, LAST * PAGE, pad=True) == truth.read(0, LAST * PAGE, pad=True), location
    _, layer = stack(plugin, "vmdump:synthetic:8M?seed=2")
    with vmdump.open_source("synthetic:8M?seed=2") as guest:
        assert layer.read(PAGE, 3 * PAGE) == guest.read(PAGE, 3 * PAGE)


def test_copies_share_what_is_open(plugin: Any, dump: Path) -> None:
    context, layer = stack(plugin, f"file://{dump}")
    clone = context.clone().layers[layer.name]
    assert clone.read(0, 8) == layer.read(0, 8)

    def descriptors() -> int:
        links = (f"/proc/self/fd/{name}" for name in os.listdir("/proc/self/fd"))
        return sum(os.path.lexists(link) and os.readlink(link) == str(dump) for link in links)

    assert descriptors() == 1
    copies = [copy.deepcopy(layer) for _ in range(3)]
    assert [each.read(0, 8) for each in copies] == [layer.read(0, 8)] * 3
    assert descriptors() == 1
    for each in (*copies, clone, layer):
        each.destroy()
    assert descriptors() == 0


def test_what_is_not_vmdumps(
    plugin: Any, dump: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    vmdump.convert(dump, tmp_path / "elf", format="elf")
    (tmp_path / "short").write_bytes(b"KDUMP")
    for name in ("elf", "short"):
        _, layer = stack(plugin, f"file://{tmp_path}/{name}")
        assert layer is None
    assert not caplog.records
    (tmp_path / "cut").write_bytes(dump.read_bytes()[:5000])
    with caplog.at_level(logging.WARNING):
        for location in (f"file://{tmp_path}/cut", "vmdump:/nowhere/guest"):
            _, layer = stack(plugin, location)
            assert layer is None
    texts = [record.getMessage() for record in caplog.records]
    assert len(texts) == 2
    assert texts[0].startswith(f"vmdump: {tmp_path}/cut: ")
    assert texts[1].startswith("vmdump: /nowhere/guest: ")
