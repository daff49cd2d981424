"""A stream of records that belong at offsets of another file, walked and put in place."""

cimport cython
from libc.stdint cimport uint8_t, uint64_t

from vmdump.kernels.status cimport VMD_AGAIN, VMD_ERRNO, VMD_OK, raise_read_error

import numpy as np

__all__ = ["read", "scan"]


cdef enum:
    PIECE = 1 << 16  # records of one call: 1.5 MiB of numbers, and 20 ms at most before signals are looked at


@cython.final
cdef class _Stream:
    """Where a stream is, and what keeps it alive."""

    cdef vmd_stream where
    cdef const uint8_t[::1] _view

    def __cinit__(self, stream, size):
        self.where.fd = -1
        self.where.size = size
        if isinstance(stream, int):
            self.where.fd = stream
            return
        self._view = stream
        if <uint64_t>self._view.shape[0] != self.where.size:
            raise ValueError(f"{self._view.shape[0]} bytes are not a stream of {size}")
        # Not NULL even without bytes: NULL stands for a descriptor.
        self.where.bytes = &self._view[0] if size else <const uint8_t *>&self.where


def scan(stream not None, size, position):
    """Walk the records of a stream: offset and size, signed 64-bit big-endian, then the bytes.

    Parameters
    ----------
    stream : int, or (size,) uint8, C-contiguous, may be read-only
        A descriptor, or the bytes themselves.
    size : int
        Bytes of the stream.
    position : int
        Where the first record begins.

    Returns
    -------
    begins, ends, places : (n,) uint64
        Of each record, in the order of the stream: its range in the other file, and where its data begins in
        the stream. Every range is inside 63 bits, all data inside the stream.
    bad : int or None
        Position of the record at which the stream goes wrong: negative, empty, or not inside it. None if the
        end mark, two numbers of -1, was found.

    Raises
    ------
    OSError
        Reading fails; without an errno where the file has become shorter.
    """
    cdef _Stream source = _Stream(stream, size)
    cdef uint64_t at = position
    cdef size_t count = 0
    cdef int status = VMD_AGAIN, error = 0
    cdef uint64_t[:, ::1] piece
    pieces = []
    while status == VMD_AGAIN:
        array = np.empty((3, PIECE), np.uint64)
        piece = array
        with nogil:
            status = vmd_records_scan(
                &source.where, &at, &piece[0, 0], &piece[1, 0], &piece[2, 0], PIECE, &count, &error
            )
        if status == VMD_ERRNO:
            raise_read_error(error)
        pieces.append(array if count == PIECE else array[:, :count].copy())
    begins, ends, places = (np.concatenate([one[row] for one in pieces]) for row in range(3))
    return begins, ends, places, None if status == VMD_OK else at


def read(
    stream not None,
    size,
    const uint64_t[::1] begins not None,
    const uint64_t[::1] ends not None,
    const uint64_t[::1] places not None,
    offset,
    uint8_t[::1] out not None,
) -> None:
    """Fill `out` with what the records hold from `offset` on; the rest is zero.

    Parameters
    ----------
    stream, size
        As of `scan`.
    begins, ends, places : (n,) uint64, C-contiguous, may be read-only
        As `scan` gives them, ascending and not overlapping.
    offset : int
        In the other file, ``0 <= offset < 2^63``.
    out : (m,) uint8, C-contiguous, writable
        Receives the bytes.

    Raises
    ------
    ValueError
        The arrays have different lengths, or a record overlaps another or leaves the stream.
    OSError
        Reading fails; without an errno where the file has become shorter.
    """
    cdef _Stream source = _Stream(stream, size)
    cdef uint64_t at = offset
    cdef size_t count = begins.shape[0], length = out.shape[0]
    cdef int status, error = 0
    if ends.shape[0] != <Py_ssize_t>count or places.shape[0] != <Py_ssize_t>count:
        raise ValueError(f"{count} begins, {ends.shape[0]} ends and {places.shape[0]} places")
    if length == 0:
        return
    if count == 0:
        out[:] = 0
        return
    with nogil:
        status = vmd_records_read(
            &source.where, &begins[0], &ends[0], &places[0], count, at, &out[0], length, &error
        )
    if status == VMD_ERRNO:
        raise_read_error(error)
    if status != VMD_OK:
        raise ValueError("a record overlaps another, or leaves the stream")
