"""A stream of records that belong at offsets of another file, walked and put in place."""

from libc.stdint cimport uint8_t, uint64_t

import os

import numpy as np

__all__ = ["read", "scan"]


cdef extern from "records.h":
    enum:
        VMD_OK
        VMD_AGAIN
        VMD_ERRNO
    ctypedef struct vmd_stream "struct vmd_stream":
        int fd
        const uint8_t *bytes
        uint64_t size
    int vmd_records_scan(
        const vmd_stream *stream, uint64_t *position, uint64_t *begins, uint64_t *ends, uint64_t *places,
        size_t max, size_t *count, int *error
    ) noexcept nogil
    int vmd_records_read(
        const vmd_stream *stream, const uint64_t *begins, const uint64_t *ends, const uint64_t *places,
        size_t count, uint64_t offset, uint8_t *out, uint64_t length, int *error
    ) noexcept nogil


cdef enum:
    PIECE = 1 << 16  # records of one call: 1.5 MiB of numbers, and 20 ms at most before signals are looked at


cdef _fail(int error):
    """A read that failed; the file has become shorter where there is no errno."""
    if error:
        raise OSError(error, os.strerror(error))
    raise EOFError("the file has become shorter")


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
    OSError, EOFError
        Reading fails, or the file has become shorter.
    """
    cdef const uint8_t[::1] view
    cdef vmd_stream where
    cdef uint64_t at = position
    cdef size_t count = 0
    cdef int status = VMD_AGAIN, error = 0
    cdef uint64_t[:, ::1] piece
    where.size = size
    where.fd = -1
    where.bytes = NULL
    if isinstance(stream, int):
        where.fd = stream
    else:
        view = stream
        if <uint64_t>view.shape[0] != where.size:
            raise ValueError(f"{view.shape[0]} bytes are no stream of {size}")
        where.bytes = &view[0] if view.shape[0] else <const uint8_t *>&where
    pieces = []
    while status == VMD_AGAIN:
        array = np.empty((3, PIECE), np.uint64)
        piece = array
        with nogil:
            status = vmd_records_scan(
                &where, &at, &piece[0, 0], &piece[1, 0], &piece[2, 0], PIECE, &count, &error
            )
        if status == VMD_ERRNO:
            _fail(error)
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
    """Fill `out` with what the records hold from `offset` on; what none holds is zero.

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
    OSError, EOFError
        Reading fails, or the file has become shorter.
    """
    cdef const uint8_t[::1] view
    cdef vmd_stream where
    cdef uint64_t at = offset
    cdef size_t count = begins.shape[0], length = out.shape[0]
    cdef int status, error = 0
    where.size = size
    where.fd = -1
    where.bytes = NULL
    if ends.shape[0] != <Py_ssize_t>count or places.shape[0] != <Py_ssize_t>count:
        raise ValueError(f"{count} begins, {ends.shape[0]} ends and {places.shape[0]} places")
    if isinstance(stream, int):
        where.fd = stream
    else:
        view = stream
        if <uint64_t>view.shape[0] != where.size:
            raise ValueError(f"{view.shape[0]} bytes are no stream of {size}")
        where.bytes = &view[0] if view.shape[0] else <const uint8_t *>&where
    if length == 0:
        return
    if count == 0:
        out[:] = 0
        return
    with nogil:
        status = vmd_records_read(
            &where, &begins[0], &ends[0], &places[0], count, at, &out[0], length, &error
        )
    if status == VMD_ERRNO:
        _fail(error)
    if status != VMD_OK:
        raise ValueError("a record overlaps another, or leaves the stream")
