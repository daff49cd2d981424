"""Engines that are Python packages: zlib-ng, python-lzo and python-snappy.

They have the interface of `vmdump.kernels.pack` and `vmdump.kernels.unpack`, and follow the same rules page
by page. Python runs once per page: the price of a binding. They are optional (the extra ``bindings``), and
imported when they are first asked for, so that a missing one is a missing engine and not an import error.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from vmdump.errors import CodecError, EngineUnavailable
from vmdump.kernels.engines import checked_level, checked_page_size
from vmdump.kernels.pack import SAME_SIZE
from vmdump.kernels.scan import NEW, SAME, PageScan

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

__all__ = ["BINDINGS", "Binding", "BindingPacker", "BindingUnpacker"]

_Compress = Callable[[bytes, int], bytes]
_Decompress = Callable[[bytes, int], bytes]


def _zlib_ng(module: Any) -> tuple[_Compress, _Decompress]:
    def decompress(stream: bytes, size: int) -> bytes:
        # One byte more than a page, so that the end of the stream is reached, and no bomb goes off.
        inflate = module.decompressobj()
        page: bytes = inflate.decompress(stream, size + 1)
        if not inflate.eof:
            raise ValueError("the stream has no end within the page")
        return page

    return module.compress, decompress


def _python_lzo(module: Any) -> tuple[_Compress, _Decompress]:
    def compress(page: bytes, level: int) -> bytes:
        stream: bytes = module.compress(page, level, False)
        return stream

    def decompress(stream: bytes, size: int) -> bytes:
        page: bytes = module.decompress(stream, False, size)
        return page

    return compress, decompress


def _python_snappy(module: Any) -> tuple[_Compress, _Decompress]:
    def compress(page: bytes, level: int) -> bytes:
        stream: bytes = module.compress(page)
        return stream

    def decompress(stream: bytes, size: int) -> bytes:
        # The binding allocates whatever the stream claims: look at its varint first.
        claimed = shift = 0
        for byte in stream[:5]:
            claimed |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                break
        else:
            raise ValueError("the stream has no length")
        if claimed != size:
            raise ValueError(f"the stream claims {claimed} bytes")
        page: bytes = module.uncompress(stream)
        return page

    return compress, decompress


@dataclass(frozen=True)
class Binding:
    """One engine that is a Python package.

    Attributes
    ----------
    name, codec : str
        As of `vmdump.codecs.registry.Engine`.
    package, module : str
        Name of the distribution, and of the module in it.
    min_level, max_level, default_level : int
        The engine's levels.
    functions : callable
        Module to its compress(page, level) and decompress(stream, page_size).
    """

    name: str
    codec: str
    package: str
    module: str
    min_level: int
    max_level: int
    default_level: int
    functions: Callable[[Any], tuple[_Compress, _Decompress]]

    def version(self) -> str:
        """Version of the package, or an empty string if it is not installed."""
        # It takes 30 ms, and most starts need no binding.
        from importlib.metadata import PackageNotFoundError, version

        try:
            return version(self.package)
        except PackageNotFoundError:
            return ""

    def missing(self) -> str:
        """Why the engine is not usable, or an empty string."""
        if not self.version():
            return f"package {self.package} is not installed (pip install 'vmdump[bindings]')"
        try:
            importlib.import_module(self.module)
        except ImportError as error:
            return f"importing package {self.package} failed: {error}"
        return ""

    def load(self) -> tuple[_Compress, _Decompress]:
        """Import the package.

        Returns
        -------
        tuple of callable
            compress(page, level) and decompress(stream, page_size).

        Raises
        ------
        EngineUnavailable
            The package is not installed, or importing it failed.
        """
        reason = self.missing()
        if reason:
            raise EngineUnavailable(f"engine {self.name}: {reason}", engine=self.name)
        return self.functions(importlib.import_module(self.module))


BINDINGS = {
    binding.name: binding
    for binding in (
        Binding("zlib-ng", "zlib", "zlib-ng", "zlib_ng.zlib_ng", 1, 9, 1, _zlib_ng),
        Binding("python-lzo", "lzo", "python-lzo", "lzo", 1, 1, 1, _python_lzo),
        Binding("python-snappy", "snappy", "python-snappy", "snappy", 0, 0, 0, _python_snappy),
    )
}


def _binding(engine: str) -> Binding:
    if engine not in BINDINGS:
        raise EngineUnavailable(
            f"engine {engine}: there is no binding of that name; there are {', '.join(BINDINGS)}",
            engine=engine,
            available=tuple(BINDINGS),
        )
    return BINDINGS[engine]


def _bytes_of(buffer: ReadableBuffer) -> npt.NDArray[np.uint8]:
    return np.frombuffer(buffer, dtype=np.uint8)


class BindingPacker:
    """Packs pages with a binding; parameters and errors as of `vmdump.kernels.pack.Packer`."""

    def __init__(self, engine: str, page_size: int, level: int | None = None) -> None:
        binding = _binding(engine)
        self.engine = engine
        self.level = checked_level(engine, level, binding.min_level, binding.max_level, binding.default_level)
        self.page_size = checked_page_size(page_size)
        self._compress, _ = binding.load()

    def bound(self, page_count: int) -> int:
        """Tell how many bytes `pack` needs for `page_count` pages."""
        return page_count * self.page_size

    def train(self, pages: ReadableBuffer) -> bool:
        """Tell that there is nothing to train: False, as of `vmdump.kernels.pack.Packer.train`."""
        return False

    def pack(
        self, mem: PageScan | ReadableBuffer, out: WriteableBuffer, sizes: npt.NDArray[np.uint32]
    ) -> int:
        """Pack pages; parameters, result and errors as of `vmdump.kernels.pack.Packer.pack`."""
        target = _bytes_of(out)
        count, page_size = len(sizes), self.page_size
        scan = mem if isinstance(mem, PageScan) else PageScan(mem, page_size)
        if scan.page_count != count or scan.page_size != page_size:
            raise ValueError(
                f"{scan.page_count} pages of {scan.page_size} bytes are not {count} pages of {page_size}"
            )
        if target.size < self.bound(count):
            raise ValueError(f"out has {target.size} bytes; {count} pages need {self.bound(count)}")
        used = 0
        kinds = np.empty(count, np.uint8)
        pages = scan.read(kinds)
        sizes[:] = np.where(kinds == SAME, np.uint32(SAME_SIZE), np.uint32(0))
        for index in np.flatnonzero(kinds == NEW).tolist():
            # The guest may be writing to the page: the stream and the plain page come from one copy.
            page = pages[index * page_size : (index + 1) * page_size].tobytes()
            try:
                stream = self._compress(page, self.level)
            except Exception as error:
                raise CodecError(
                    f"{self.engine} failed to compress page {index}: {error}", engine=self.engine, page=index
                ) from error
            kept = stream if len(stream) < page_size else page
            target[used : used + len(kept)] = _bytes_of(kept)
            sizes[index] = len(kept)
            used += len(kept)
        return used


class BindingUnpacker:
    """Unpacks pages with a binding; parameters and errors as of `vmdump.kernels.unpack.Unpacker`."""

    def __init__(self, engine: str, page_size: int) -> None:
        binding = _binding(engine)
        self.engine = engine
        self.page_size = checked_page_size(page_size)
        _, self._decompress = binding.load()

    def unpack(
        self,
        data: ReadableBuffer,
        offsets: npt.NDArray[np.uint64],
        sizes: npt.NDArray[np.uint32],
        compressed: npt.NDArray[np.uint8],
        out: WriteableBuffer,
    ) -> None:
        """Unpack pages; parameters and errors as of `vmdump.kernels.unpack.Unpacker.unpack`."""
        source, target = _bytes_of(data), _bytes_of(out)
        count = len(sizes)
        if len(offsets) != count or len(compressed) != count:
            raise ValueError(f"{len(offsets)} offsets, {count} sizes and {len(compressed)} flags")
        if target.size != count * self.page_size:
            raise ValueError(f"out has {target.size} bytes, not {count} pages of {self.page_size}")
        rows = zip(offsets.tolist(), sizes.tolist(), compressed.tolist(), strict=True)
        for index, (offset, size, is_stream) in enumerate(rows):
            stored = source[offset : offset + size].tobytes() if size else b""
            page = self._page(stored, index, offset, size, bool(is_stream))
            target[index * self.page_size : (index + 1) * self.page_size] = _bytes_of(page)

    def unpack_page(self, data: ReadableBuffer) -> bytes:
        """Unpack one page; as of `vmdump.kernels.unpack.Unpacker.unpack_page`."""
        stored = _bytes_of(data).tobytes()
        if not stored:
            raise CodecError(f"{self.engine}: an empty stream", engine=self.engine, page=0)
        return self._page(stored, 0, 0, len(stored), is_stream=True)

    def _page(self, stored: bytes, index: int, offset: int, size: int, is_stream: bool) -> bytes:
        cause: Exception | None = None
        if size == 0:
            return bytes(self.page_size)
        if len(stored) != size:
            what = f"its {size} bytes at {offset} leave the data"
        elif not is_stream:
            if size == self.page_size:
                return stored
            what = f"it is plain with {size} bytes instead of {self.page_size}"
        else:
            what = f"its {size} bytes at {offset} are not a stream of {self.page_size} bytes"
            try:
                page = self._decompress(stored, self.page_size)
                if len(page) == self.page_size:
                    return page
            except Exception as error:
                cause = error
        raise CodecError(f"{self.engine}: page {index}: {what}", engine=self.engine, page=index) from cause
