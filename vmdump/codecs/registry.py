"""The one registry of compression engines: native and binding, usable or not.

A new engine is its name in `_PREFERENCE` and, if it is native, ``csrc/codecs/NAME.c`` with its entries in
``engine.h`` and ``libraries.txt`` there, or, if it is a Python package, its entry in ``bindings.py``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from vmdump.errors import EngineUnavailable, RequestError
from vmdump.kernels.engines import NATIVE_ENGINES, missing_engines, native_engines
from vmdump.suggestions import is_it

# Packers, unpackers and bindings are imported by the functions that need them: few processes need all.

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

    from vmdump.kernels.scan import PageScan

__all__ = [
    "CODECS",
    "Engine",
    "EngineName",
    "PagePacker",
    "PageUnpacker",
    "default_engine",
    "engines",
    "find_engine",
    "lacking",
    "make_packer",
    "make_unpacker",
]

EngineName = Literal[
    "isal", "libdeflate", "zlib-ng", "zlib", "lzo2", "python-lzo", "snappy", "python-snappy", "zstd"
]
"""The names of all engines, for type checkers."""
CODECS = ("zlib", "lzo", "snappy", "zstd")
"""What the file formats name."""

# Packing: every 16th of the 118,458 pages of a Linux guest that were not zero (75 MiB of them gzip's output
# or random), one core of a Xeon (Sapphire Rapids, virtual), in MB/s (compressed / raw), best of 4 in one run:
# isal 1 253 (0.452), libdeflate 1 183 (0.448), zlib-ng 1 184 (0.520), zlib 1 82 (0.448);
# lzo2 660, python-lzo 465 (0.547); snappy 704, python-snappy 473 (0.548); zstd 1 280 (0.447).
# Other levels: isal 0 521 (0.534), trained 513 (0.505), isal 2 253 (0.452); libdeflate 2 137 (0.439);
# zlib-ng 2 78 (0.448). isal 1 is the fastest with at most 1 % more bytes than zlib 1; zlib-ng is as fast as
# libdeflate for 16 % more bytes: hence third.
_PREFERENCE = {
    "zlib": ("isal", "libdeflate", "zlib-ng", "zlib"),
    "lzo": ("lzo2", "python-lzo"),
    "snappy": ("snappy", "python-snappy"),
    "zstd": ("zstd",),
}
# Unpacking what isal 1 made of them: libdeflate 517, isal 449, zlib-ng 283, zlib 243.
_UNPACK_PREFERENCE = {**_PREFERENCE, "zlib": ("libdeflate", "isal", "zlib-ng", "zlib")}


class Engine(NamedTuple):
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
        Of the library or package; empty if that is missing.
    min_level, max_level, default_level : int
        The engine's levels; all 0 if a native engine was not built.
    trained_level : int or None
        The level at which `PagePacker.train` is of use.
    missing : str
        Why the engine is not usable; empty if it is.
    """

    name: str
    codec: str
    kind: str
    version: str
    min_level: int
    max_level: int
    default_level: int
    trained_level: int | None
    missing: str

    @property
    def has_levels(self) -> bool:
        """True if there is more than one level to choose from."""
        return self.max_level > self.min_level


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

    def train(self, pages: ReadableBuffer) -> bool:
        """Fit the packer to pages like these."""

    def pack(
        self, mem: PageScan | ReadableBuffer, out: WriteableBuffer, sizes: npt.NDArray[np.uint32]
    ) -> int:
        """Pack pages."""


class PageUnpacker(Protocol):
    """What `make_unpacker` returns; `vmdump.kernels.unpack.Unpacker` has the contract."""

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

    def unpack_page(self, data: ReadableBuffer) -> bytes:
        """Unpack one page."""


def _engine(name: str, codec: str) -> Engine:
    if name in NATIVE_ENGINES:
        about = native_engines().get(name)
        if about is None:
            return Engine(name, codec, "native", "", 0, 0, 0, None, missing_engines()[name])
        levels = about["min_level"], about["max_level"], about["default_level"], about["trained_level"]
        return Engine(name, codec, "native", about["version"], *levels, "")
    from vmdump.codecs.bindings import BINDINGS

    binding = BINDINGS[name]
    levels = binding.min_level, binding.max_level, binding.default_level, None
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
        No engine of this codec is usable.
    RequestError
        No codec has this name.
    """
    return _first_usable(codec, _PREFERENCE)


def lacking(engine: Engine) -> tuple[Engine, ...]:
    """List the native engines that are better than this one, and that this build does not have.

    Parameters
    ----------
    engine : Engine
        The one that is used instead of them.
    """
    names = _PREFERENCE[engine.codec]
    better = (_engine(name, engine.codec) for name in names[: names.index(engine.name)])
    return tuple(each for each in better if each.kind == "native" and each.missing)


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
        The engine does not exist, belongs to another codec, or is not usable here.
    RequestError
        No codec has this name.
    """
    if name is None:
        return default_engine(codec)
    _known_codec(codec)
    everyone = [each for names in _PREFERENCE.values() for each in names]
    reason = f"there is no engine of that name{is_it(name, everyone)}"
    for owner, names in _PREFERENCE.items():
        if name in names:
            engine = _engine(name, owner)
            if owner == codec and not engine.missing:
                return engine
            reason = engine.missing or f"it is an engine of {owner}, not of {codec}"
    usable = tuple(engine.name for engine in engines() if engine.codec == codec and not engine.missing)
    raise EngineUnavailable(
        f"engine {name}: {reason}; usable for {codec}: {', '.join(usable) or 'none'}",
        engine=name,
        available=usable,
    )


def make_packer(engine: Engine, page_size: int, level: int | None = None) -> PagePacker:
    """Make a packer for one worker.

    Parameters
    ----------
    engine : Engine
        From `find_engine` or `default_engine`.
    page_size : int
        Bytes, 1..1 MiB.
    level : int or None
        None for the engine's default.

    Raises
    ------
    EngineUnavailable
        The engine is not usable here.
    RequestError
        The page size or the level is out of range.
    """
    if engine.kind == "native":
        from vmdump.kernels.pack import Packer

        return Packer(engine.name, page_size, level)
    from vmdump.codecs.bindings import BindingPacker

    return BindingPacker(engine.name, page_size, level)


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
        The engine is not usable, or the codec has no usable one.
    RequestError
        No codec has this name, or the page size is out of range.
    """
    found = find_engine(codec, engine) if engine is not None else _first_usable(codec, _UNPACK_PREFERENCE)
    if found.kind == "native":
        from vmdump.kernels.unpack import Unpacker

        return Unpacker(found.name, page_size)
    from vmdump.codecs.bindings import BindingUnpacker

    return BindingUnpacker(found.name, page_size)
