"""The registry: which engines there are, which is taken, and what a demand for another one gets."""

from __future__ import annotations

import importlib
import importlib.metadata
from typing import Any

import pytest

from vmdump import capabilities
from vmdump.codecs import bindings, registry
from vmdump.errors import EngineUnavailable, RequestError
from vmdump.kernels.engines import NATIVE_ENGINES, missing_engines, native_engines

NAMES = {
    "zlib": ["isal", "libdeflate", "zlib-ng", "zlib"],
    "lzo": ["lzo2", "python-lzo"],
    "snappy": ["snappy", "python-snappy"],
    "zstd": ["zstd"],
}
REASON = "not built: for this test"


def usable() -> list[registry.Engine]:
    return [engine for engine in registry.engines() if not engine.missing]


def test_all_nine_are_listed() -> None:
    found = {
        codec: [each.name for each in registry.engines() if each.codec == codec] for codec in registry.CODECS
    }
    assert found == NAMES
    assert set(NATIVE_ENGINES) == {engine.name for engine in registry.engines() if engine.kind == "native"}
    assert set(native_engines()) | set(missing_engines()) == set(NATIVE_ENGINES)
    assert not set(native_engines()) & set(missing_engines())


def test_every_setup_of_the_repository_has_the_bindings() -> None:
    for name in ("zlib-ng", "python-lzo", "python-snappy"):
        assert bindings.BINDINGS[name].missing() == ""
        assert bindings.BINDINGS[name].version() == importlib.metadata.version(name)


def test_descriptions() -> None:
    for engine in registry.engines():
        if engine.missing:
            assert engine.version == ""
        else:
            assert engine.version[0].isdigit()
            assert engine.min_level <= engine.default_level <= engine.max_level


@pytest.mark.parametrize("codec", registry.CODECS)
def test_default_is_the_first_usable(codec: str) -> None:
    expected = [engine for engine in usable() if engine.codec == codec]
    if not expected:
        pytest.skip(f"no engine for {codec} in this build")
    assert registry.default_engine(codec) == expected[0] == registry.find_engine(codec, None)


def test_a_missing_engine_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "native_engines", dict)
    monkeypatch.setattr(
        registry, "missing_engines", lambda: dict.fromkeys(NATIVE_ENGINES, "not built: for this test")
    )
    assert registry.default_engine("zlib").name == "zlib-ng"
    assert registry.make_unpacker("lzo", 4096).engine == "python-lzo"
    with pytest.raises(EngineUnavailable, match=f"zstd: {REASON}"):
        registry.default_engine("zstd")
    with pytest.raises(EngineUnavailable, match=f"isal: {REASON}") as error:
        registry.find_engine("zlib", "isal")
    assert error.value.available == ("zlib-ng",)


def test_a_package_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(package: str) -> str:
        raise importlib.metadata.PackageNotFoundError(package)

    monkeypatch.setattr(importlib.metadata, "version", version)
    with pytest.raises(EngineUnavailable, match="package python-lzo is not installed"):
        registry.find_engine("lzo", "python-lzo")
    with pytest.raises(EngineUnavailable, match="package python-lzo is not installed"):
        bindings.BindingPacker("python-lzo", 4096)


def test_a_package_that_cannot_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    def import_module(name: str) -> Any:
        raise ImportError(f"{name} is broken")

    monkeypatch.setattr(importlib, "import_module", import_module)
    with pytest.raises(EngineUnavailable, match="importing package zlib-ng failed"):
        registry.find_engine("zlib", "zlib-ng")


@pytest.mark.parametrize(
    ("codec", "name"), [("zlib", "lz77"), ("zlib", "lzo2"), ("zstd", "zlib"), ("lzo", "")]
)
def test_another_engine_is_a_demand(codec: str, name: str) -> None:
    with pytest.raises(EngineUnavailable) as error:
        registry.find_engine(codec, name)
    assert error.value.engine == name
    assert error.value.available == tuple(engine.name for engine in usable() if engine.codec == codec)
    with pytest.raises(EngineUnavailable):
        registry.make_unpacker(codec, 4096, name)


def test_unknown_codec() -> None:
    for call in (registry.default_engine, lambda codec: registry.find_engine(codec, "zlib")):
        with pytest.raises(RequestError, match="zlib, lzo, snappy, zstd"):
            call("lzma")


@pytest.mark.parametrize("engine", usable(), ids=lambda engine: engine.name)
def test_levels_are_never_clamped(engine: registry.Engine) -> None:
    for level in range(engine.min_level, engine.max_level + 1):
        assert registry.make_packer(engine, 4096, level).level == level
    assert registry.make_packer(engine, 4096).level == engine.default_level
    for level in (engine.min_level - 1, engine.max_level + 1, -100, 1000):
        with pytest.raises(RequestError, match=rf"{engine.min_level}\.\.{engine.max_level}") as error:
            registry.make_packer(engine, 4096, level)
        assert error.value.parameter == "level"


@pytest.mark.parametrize("engine", usable(), ids=lambda engine: engine.name)
@pytest.mark.parametrize("page_size", [0, -4096, (1 << 20) + 1])
def test_page_sizes_are_checked(engine: registry.Engine, page_size: int) -> None:
    with pytest.raises(RequestError, match="page_size"):
        registry.make_packer(engine, page_size)
    with pytest.raises(RequestError, match="page_size"):
        registry.make_unpacker(engine.codec, page_size, engine.name)


def test_what_a_build_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    missing = {"isal": REASON, "lzo2": REASON}
    found = {name: about for name, about in native_engines().items() if name not in missing}
    monkeypatch.setattr(registry, "native_engines", lambda: found)
    monkeypatch.setattr(registry, "missing_engines", lambda: missing)

    def names(codec: str, engine: str) -> list[str]:
        return [each.name for each in registry.lacking(registry.find_engine(codec, engine))]

    assert names("zlib", "libdeflate") == names("zlib", "zlib-ng") == ["isal"]
    assert names("lzo", "python-lzo") == ["lzo2"]
    assert names("snappy", "python-snappy") == names("zstd", "zstd") == []


def test_a_codec_without_any_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(package: str) -> str:
        raise importlib.metadata.PackageNotFoundError(package)

    monkeypatch.setattr(importlib.metadata, "version", version)
    monkeypatch.setattr(registry, "native_engines", dict)
    monkeypatch.setattr(registry, "missing_engines", lambda: dict.fromkeys(NATIVE_ENGINES, REASON))
    words = rf"no engine for lzo: lzo2: {REASON}; python-lzo: package python-lzo is not installed"
    with pytest.raises(EngineUnavailable, match=words):
        registry.make_unpacker("lzo", 4096)
    states = {state.name: state for state in capabilities().formats}
    assert states["elf"].available
    assert not any(state.available for name, state in states.items() if name.startswith("kdump-"))
    assert "pip install 'vmdump[bindings]'" in states["kdump-snappy"].missing
