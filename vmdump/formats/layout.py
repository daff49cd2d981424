"""Binary layouts as data: every field declared once, with its width and the version that brought it.

A :class:`Layout` turns a table of fields into a numpy dtype, and this is the
only place where byte order is applied. Padding is a field like any other, so
the table shows every byte of the structure.
"""

from __future__ import annotations

import struct
from functools import cache
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vmdump.errors import FormatError

__all__ = ["ByteOrder", "Field", "Layout"]

ByteOrder = Literal["little", "big"]

_ORDER_MARK = {"little": "<", "big": ">"}
_CODES = {"u1": "B", "u2": "H", "u4": "I", "u8": "Q", "i4": "i", "i8": "q"}


class Field(NamedTuple):
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


class Layout(NamedTuple):
    """A structure whose padding is declared, too.

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
                f"{self.name} needs {self.size} bytes, the data has {max(room, 0)}", path=path, offset=offset
            )
        values = self.struct(byteorder).unpack_from(data, offset)
        # As numpy does it: text ends with its last byte that is not zero.
        return {
            field.name: value.rstrip(b"\0") if field.code[0] == "S" else value
            for field, value in zip(self.fields, values, strict=True)
        }

    def struct(self, byteorder: ByteOrder) -> struct.Struct:
        """Give the same layout for single structures: ten times as fast as `dtype`; padding is bytes."""
        return _struct(self, byteorder)


@cache
def _struct(layout: Layout, byteorder: ByteOrder) -> struct.Struct:
    codes = (_CODES.get(field.code) or f"{field.code[1:]}s" for field in layout.fields)
    return struct.Struct(_ORDER_MARK[byteorder] + "".join(codes))


@cache
def _dtype(layout: Layout, byteorder: ByteOrder) -> np.dtype[np.void]:
    mark = _ORDER_MARK[byteorder]
    return np.dtype([(field.name, mark + field.code) for field in layout.fields])
