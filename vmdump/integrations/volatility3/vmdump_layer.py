"""A layer of volatility3 over any guest that vmdump opens.

``vol -p "$(vmdump integrations volatility3)" -f guest.kdump linux.pslist``: kdump files of both layouts are
recognised; all else is named: ``-f vmdump:qmp:/run/vm.qmp``, ``-f "vmdump:part.1;part.2"``.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Iterable, Iterator
from typing import Any
from urllib.parse import urlsplit
from urllib.request import Request, url2pathname
from weakref import WeakValueDictionary

from volatility3.framework import constants, exceptions, interfaces
from volatility3.framework.configuration import requirements
from volatility3.framework.layers import physical, resources

from vmdump.errors import CodecError, FormatError, ReadError, VmdumpError
from vmdump.guest.present import present_runs
from vmdump.integrations.lasting import LastingGuest

__all__ = ["VmdumpHandler", "VmdumpLayer", "VmdumpStacker"]

_SCHEME = "vmdump:"
_SEVERAL = ";"
"""Between the parts of a split set: what also separates volatility's own lists."""
_MAGICS = (b"KDUMP   ", b"DISKDUMP", b"makedumpfile")
"""That dumps begin with which volatility has no layer for."""

_log = logging.getLogger(__name__)
_open: WeakValueDictionary[str, LastingGuest] = WeakValueDictionary()
"""By source: volatility makes a layer anew for each copy of its context, and QMP serves one client."""


def _guest_of(source: str) -> LastingGuest:
    """Open a source, or give what is open.

    Raises
    ------
    VmdumpError
        It cannot be opened.
    """
    held = _open.get(source)
    if held is None:
        parts = source.split(_SEVERAL)
        held = _open[source] = LastingGuest(parts if len(parts) > 1 else source, search=False)
    return held


class VmdumpHandler(resources.VolatilityHandler):
    """Let ``vmdump:SOURCE`` be a location: volatility wants a file to begin with, and gets an empty one."""

    @classmethod
    def non_cached_schemes(cls) -> list[str]:
        """Name the scheme: nothing is downloaded."""
        return [_SCHEME.removesuffix(":")]

    @staticmethod
    def default_open(req: Request) -> io.BytesIO | None:
        """Open a location of this scheme."""
        return io.BytesIO() if req.full_url.startswith(_SCHEME) else None


class VmdumpLayer(interfaces.layers.DataLayerInterface):
    """Guest-physical memory, read by vmdump.

    Memory that is in no block, was excluded from the dump or is damaged is not there: reading it raises
    InvalidAddressException that says why, or gives zeros if it is to be padded. Scans leave it out.
    """

    def __init__(
        self, context: Any, config_path: str, name: str, metadata: dict[str, Any] | None = None
    ) -> None:
        super().__init__(context=context, config_path=config_path, name=name, metadata=metadata)
        self._source: str = self.config["source"]
        self._held: LastingGuest | None = _guest_of(self._source)

    @property
    def _guest(self) -> Any:
        if self._held is None:
            self._held = _guest_of(self._source)
        return self._held.guest

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what is open: copies open it again, or find it open."""
        return {**self.__dict__, "_held": None}

    @property
    def minimum_address(self) -> int:
        """The first address of memory."""
        first: int = self._guest.blocks[0].start
        return first

    @property
    def maximum_address(self) -> int:
        """The last address of memory."""
        end: int = self._guest.blocks[-1].end
        return end - 1

    def is_valid(self, offset: int, length: int = 1) -> bool:
        """Tell whether all of ``[offset, offset + length)`` is there; damaged pages are not known yet."""
        return sum(end - begin for begin, end in self._present(offset, length)) == length

    def _present(self, offset: int, length: int) -> Iterator[tuple[int, int]]:
        return present_runs(self._guest, offset, offset + length)

    def read(self, offset: int, length: int, pad: bool = False) -> bytes:
        """Read memory.

        Raises
        ------
        InvalidAddressException
            Some of it is not there, and `pad` is false.
        SourceError
            The file or the live guest cannot be read any more.
        """
        try:
            data: bytes = self._guest.read(offset, length)
        except (ReadError, FormatError, CodecError) as error:
            if pad:
                return self._padded(offset, length)
            # No text of the error: to find out the type of an excluded page takes 40 ms.
            address = getattr(error, "address", offset)
            raise exceptions.InvalidAddressException(self.name, address, error.args[0]) from error
        return data

    def _padded(self, offset: int, length: int) -> bytes:
        data = bytearray(length)
        size: int = self._guest.page_size
        for begin, end in self._present(offset, length):
            # By pages: one that is damaged takes no others along.
            for at in range(begin, end, size):
                upto = min(at + size, end)
                try:
                    data[at - offset : upto - offset] = self._guest.read(at, upto - at)
                except (FormatError, CodecError) as error:
                    _log.debug("%s", error)
        return bytes(data)

    def write(self, offset: int, data: bytes) -> None:
        """Refuse: dumps are read only, and a live guest is none of volatility's business.

        Raises
        ------
        LayerException
            Always.
        """
        raise exceptions.LayerException(self.name, f"{self._source}: vmdump does not write to it")

    def _scan_iterator(self, scanner: Any, sections: Iterable[tuple[int, int]]) -> Iterator[Any]:
        """Cut what is there into pieces: of a piece in which a page is missing, nothing would be scanned."""
        for start, length in sections:
            for begin, end in self._present(start, length):
                yield from super()._scan_iterator(scanner, [(begin, end - begin)])

    def destroy(self) -> None:
        """Let the guest go; it is closed with the last layer that reads it."""
        self._held = None

    @classmethod
    def get_requirements(cls) -> list[Any]:
        """Ask for the source; it is what a configuration that was saved names again."""
        return [requirements.StringRequirement(name="source", optional=False)]


class VmdumpStacker(interfaces.automagic.StackerLayerInterface):
    """Recognise what vmdump reads."""

    stack_order = 9
    """Before volatility's own layers, which begin at 10."""

    @classmethod
    def stack(
        cls, context: Any, layer_name: str, progress_callback: constants.ProgressCallback = None
    ) -> VmdumpLayer | None:
        """Make the layer; None for what volatility reads itself, or what does not open: a warning says so."""
        base = context.layers[layer_name]
        source = _source_of(base) if isinstance(base, physical.FileLayer) else None
        if source is None:
            return None
        name = context.layers.free_layer_name("VmdumpLayer")
        context.config[interfaces.configuration.path_join(name, "source")] = source
        try:
            return VmdumpLayer(context, name, name)
        except VmdumpError as error:
            _log.warning("vmdump: %s", error)
            return None


def _source_of(base: Any) -> str | None:
    """Give the source that a file's layer stands for; None if it is none of vmdump's."""
    location: str = base.location
    if location.startswith(_SCHEME):
        return location.removeprefix(_SCHEME)
    # What is fetched or unpacked by volatility is no file that vmdump could open.
    parts = urlsplit(location)
    if parts.scheme != "file" or not base.is_valid(0, max(map(len, _MAGICS))):
        return None
    head = base.read(0, max(map(len, _MAGICS)))
    return url2pathname(parts.path) if head.startswith(_MAGICS) else None
