"""The checksum of snappy's frames, CRC-32C, of many frames at once.

zlib has another polynomial, and a look-up in Python for each byte would take a second for each MiB: here all
pieces of 256 bytes go through the table side by side, and their checksums are joined pair by pair (8 ms).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vmdump.guest.blocks import Pages

__all__ = ["masked_crc32c"]

_POLYNOMIAL = 0x82F63B78
_PIECE = 256
_MASK = 0xA282EAD8

_Words = NDArray[np.uint32]


def _byte_table() -> _Words:
    table: _Words = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = np.where(table & 1, table >> 1 ^ np.uint32(_POLYNOMIAL), table >> 1)
    return table


_TABLE = _byte_table()


def _shifted(words: _Words, columns: _Words) -> _Words:
    """Apply a linear map, given by its values for each of the 32 bits, to many words."""
    out = np.zeros_like(words)
    for bit in range(32):
        out ^= columns[bit] * (words >> np.uint32(bit) & np.uint32(1))
    return out


def _behind(columns: _Words) -> _Words:
    """Give the map for twice as many zero bytes."""
    return _shifted(columns, columns)


def _one_byte() -> _Words:
    bits = np.uint32(1) << np.arange(32, dtype=np.uint32)
    columns: _Words = _TABLE[bits & 0xFF] ^ bits >> np.uint32(8)
    return columns


def masked_crc32c(data: Pages) -> _Words:
    """Give the checksums of frames as snappy's framing format stores them.

    Parameters
    ----------
    data : (count, size) uint8
        A frame's memory in each row.

    Returns
    -------
    (count,) uint32
    """
    count, size = data.shape
    pieces = 1 << max(-(-size // _PIECE) - 1, 0).bit_length()
    # Leading zeros do not change a checksum that begins with 0.
    padded = np.zeros((count, pieces * _PIECE), np.uint8)
    padded[:, pieces * _PIECE - size :] = data
    columns = np.ascontiguousarray(padded.reshape(-1, _PIECE).T)
    sums = np.zeros(count * pieces, np.uint32)
    for column in columns:
        sums = _TABLE[(sums ^ column) & 0xFF] ^ sums >> np.uint32(8)
    step = _one_byte()
    for _ in range(_PIECE.bit_length() - 1):
        step = _behind(step)
    while pieces > 1:
        sums = _shifted(sums[0::2], step) ^ sums[1::2]
        step = _behind(step)
        pieces //= 2
    begin, step, rest = np.full(1, 0xFFFFFFFF, np.uint32), _one_byte(), size
    while rest:
        if rest & 1:
            begin = _shifted(begin, step)
        step = _behind(step)
        rest >>= 1
    sums ^= begin ^ np.uint32(0xFFFFFFFF)
    return (sums >> np.uint32(15) | sums << np.uint32(17)) + np.uint32(_MASK)
