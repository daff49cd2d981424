"""The one registry of compression engines: native and binding, usable or not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

from vmdump.errors import EngineUnavailable, RequestError
from vmdump.kernels.bindings import BINDINGS, BindingPacker, BindingUnpacker
from vmdump.kernels.pack import NATIVE_ENGINES, Packer, Unpacker, missing_engines, native_engines

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

__all__ = [
    "CODECS",
    "Engine",
    "PagePacker",
    "PageUnpacker",
    "default_engine",
    "engines",
    "find_engine",
    "make_packer",
    "make_unpacker",
]

CODECS = ("zlib", "lzo", "snappy", "zstd")
"""What the file formats name."""

# Packing at the default level: 4 KiB pages of a mixed corpus, 1/4 of them zero, one core of a 2.6 GHz EPYC,
# in MB/s (compressed / raw), from one run of bench/test_kernels_bench.py:
# isal 322 (0.315), libdeflate 293 (0.310), zlib-ng 331 (0.364), zlib 97 (0.316);
# lzo2 889, python-lzo 648 (0.378); snappy 979, python-snappy 638 (0.388); zstd 376 (0.303).
# zlib-ng was 3 % faster than isal, for 15 % more bytes: hence third.
_PREFERENCE = {
    "zlib": ("isal", "libdeflate", "zlib-ng", "zlib"),
    "lzo": ("lzo2", "python-lzo"),
    "snappy": ("snappy", "python-snappy"),
    "zstd": ("zstd",),
}
# Unpacking, the same corpus and run: libdeflate 939, isal 773, zlib-ng 481, zlib 443.
_UNPACK_PREFERENCE = {**_PREFERENCE, "zlib": ("libdeflate", "isal", "zlib-ng", "zlib")}


@dataclass(frozen=True)
class Engine:
    """A library that does a codec's work.

    Attributes
    ----------
    name : str
        For example ``libdeflate``.
    codec : str
        One of `CODECS`.
    kind : str
        ``native`` (linked into the kernels) or ``binding`` (a Python package).
    version : str
        Of the library or package; empty if it is not there.
    min_level, max_level, default_level : int
        The engine's levels; all 0 if a native engine was not built.
    missing : str
        Why the engine cannot be used; empty if it can.
    """

    name: str
    codec: str
    kind: str
    version: str
    min_level: int
    max_level: int
    default_level: int
    missing: str


class PagePacker(Protocol):
    """What `make_packer` returns; `vmdump.kernels.pack.Packer` has the contract."""

    @property
    def engine(self) -> str:
        """Name of the engine."""

    @property
    def level(self) -> int:
        """Level that is used."""

    @property
    def page_size(self) -> int:
        """Bytes of a page."""

    def bound(self, page_count: int) -> int:
        """Tell how many bytes `pack` needs for `page_count` pages."""

    def pack(self, mem: ReadableBuffer, out: WriteableBuffer, sizes: npt.NDArray[np.uint32]) -> int:
        """Pack pages."""


class PageUnpacker(Protocol):
    """What `make_unpacker` returns; `vmdump.kernels.pack.Unpacker` has the contract."""

    @property
    def engine(self) -> str:
        """Name of the engine."""

    @property
    def page_size(self) -> int:
        """Bytes of a page."""

    def unpack(
        self,
        data: ReadableBuffer,
        offsets: npt.NDArray[np.uint64],
        sizes: npt.NDArray[np.uint32],
        compressed: npt.NDArray[np.uint8],
        out: WriteableBuffer,
    ) -> None:
        """Unpack pages."""


def _engine(name: str, codec: str) -> Engine:
    if name in NATIVE_ENGINES:
        about = native_engines().get(name)
        if about is None:
            return Engine(name, codec, "native", "", 0, 0, 0, missing_engines()[name])
        levels = about["min_level"], about["max_level"], about["default_level"]
        return Engine(name, codec, "native", about["version"], *levels, "")
    binding = BINDINGS[name]
    levels = binding.min_level, binding.max_level, binding.default_level
    return Engine(name, codec, "binding", binding.version(), *levels, binding.missing())


def engines() -> tuple[Engine, ...]:
    """List every engine, usable or not, codec by codec and in order of preference."""
    return tuple(_engine(name, codec) for codec in CODECS for name in _PREFERENCE[codec])


def _known_codec(codec: str) -> None:
    if codec not in CODECS:
        known = ", ".join(CODECS)
        raise RequestError(f"codec {codec!r} does not exist; there are {known}", parameter="codec")


def _first_usable(codec: str, preference: dict[str, tuple[str, ...]]) -> Engine:
    _known_codec(codec)
    reasons = []
    for name in preference[codec]:
        engine = _engine(name, codec)
        if not engine.missing:
            return engine
        reasons.append(f"{name}: {engine.missing}")
    raise EngineUnavailable(f"no engine for {codec}: {'; '.join(reasons)}", engine=codec)


def default_engine(codec: str) -> Engine:
    """Choose the engine that is used when none is named: the first usable in the measured order.

    Parameters
    ----------
    codec : str
        One of `CODECS`.

    Raises
    ------
    EngineUnavailable
        No engine of this codec can be used.
    RequestError
        No codec has this name.
    """
    return _first_usable(codec, _PREFERENCE)


def find_engine(codec: str, name: str | None) -> Engine:
    """Find an engine by name, or the default.

    Parameters
    ----------
    codec : str
        One of `CODECS`.
    name : str or None
        An engine of that codec that has to be used; None for `default_engine`.

    Raises
    ------
    EngineUnavailable
        The engine does not exist, belongs to another codec, or cannot be used here.
    RequestError
        No codec has this name.
    """
    if name is None:
        return default_engine(codec)
    _known_codec(codec)
    every = engines()
    usable = tuple(engine.name for engine in every if engine.codec == codec and not engine.missing)
    reason = "there is no engine of that name"
    for engine in every:
        if engine.name == name:
            if engine.codec == codec and not engine.missing:
                return engine
            reason = engine.missing or f"it is an engine of {engine.codec}, not of {codec}"
    raise EngineUnavailable(
        f"engine {name}: {reason}; usable for {codec}: {', '.join(usable) or 'none'}",
        engine=name,
        available=usable,
    )


def make_packer(
    engine: Engine, page_size: int, level: int | None = None, zero_kernel: str | None = None
) -> PagePacker:
    """Make a packer for one worker.

    Parameters
    ----------
    engine : Engine
        From `find_engine` or `default_engine`.
    page_size : int
        Bytes, 1..1 MiB.
    level : int or None
        None for the engine's default.
    zero_kernel : str or None
        None for the default.

    Raises
    ------
    EngineUnavailable
        The engine or the zero kernel cannot be used here.
    RequestError
        The page size or the level is out of range, or no zero kernel has this name.
    """
    make = Packer if engine.kind == "native" else BindingPacker
    return make(engine.name, page_size, level, zero_kernel)


def make_unpacker(codec: str, page_size: int, engine: str | None = None) -> PageUnpacker:
    """Make an unpacker for one worker.

    Parameters
    ----------
    codec : str
        One of `CODECS`.
    page_size : int
        Bytes, 1..1 MiB.
    engine : str or None
        An engine that has to be used; None for the first usable in the measured order.

    Raises
    ------
    EngineUnavailable
        The engine cannot be used, or none of the codec can.
    RequestError
        No codec has this name, or the page size is out of range.
    """
    found = find_engine(codec, engine) if engine is not None else _first_usable(codec, _UNPACK_PREFERENCE)
    make = Unpacker if found.kind == "native" else BindingUnpacker
    return make(found.name, page_size)
