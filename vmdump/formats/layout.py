"""Binary layouts as data: every field declared once, with its width and the version that brought it.

A :class:`Layout` turns a table of fields into a numpy dtype, and this is the
only place where byte order is applied. Padding is a field like any other, so
the table shows every byte of the structure.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from vmdump.errors import FormatError

__all__ = ["ByteOrder", "Field", "Layout"]

ByteOrder = Literal["little", "big"]

_ORDER_MARK = {"little": "<", "big": ">"}


@dataclass(frozen=True)
class Field:
    """One field of a layout.

    Attributes
    ----------
    name : str
        The format's own name for it; padding is called ``pad...``.
    code : str
        numpy type code without byte order: ``u4``, ``i4``, ``u8``, ``S65``.
    since : int
        Header version that brought the field.
    """

    name: str
    code: str
    since: int = 1


@dataclass(frozen=True)
class Layout:
    """A structure without any padding but the declared one.

    Attributes
    ----------
    name : str
        Named in errors.
    fields : tuple of Field
        In file order.
    """

    name: str
    fields: tuple[Field, ...]

    @property
    def size(self) -> int:
        """Bytes of the whole structure."""
        return self.dtype("little").itemsize

    def dtype(self, byteorder: ByteOrder) -> np.dtype[np.void]:
        """Give the structured dtype of this layout, itemsize = `size`."""
        return _dtype(self, byteorder)

    def pack(self, byteorder: ByteOrder, **values: int | bytes) -> bytes:
        """Encode one structure; fields that are not named are zero.

        Raises
        ------
        OverflowError
            A value does not fit its field.
        """
        record: NDArray[np.void] = np.zeros(1, self.dtype(byteorder))
        for name, value in values.items():
            record[name] = value
        return record.tobytes()

    def unpack(self, data: Any, offset: int, byteorder: ByteOrder, *, path: str = "") -> dict[str, Any]:
        """Decode the structure at `offset` of a buffer into plain ints and bytes.

        Raises
        ------
        FormatError
            The buffer ends before the structure does.
        """
        room = memoryview(data).nbytes - offset
        if offset < 0 or room < self.size:
            raise FormatError(
                f"{self.name} needs {self.size} bytes, {max(room, 0)} are there", path=path, offset=offset
            )
        record = np.frombuffer(data, self.dtype(byteorder), count=1, offset=offset)[0]
        return {field.name: record[field.name].item() for field in self.fields}


@cache
def _dtype(layout: Layout, byteorder: ByteOrder) -> np.dtype[np.void]:
    mark = _ORDER_MARK[byteorder]
    return np.dtype([(field.name, mark + field.code) for field in layout.fields])
