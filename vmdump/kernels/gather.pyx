"""Pieces of a buffer, one behind the other."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from vmdump.kernels.status cimport VMD_OK, VMD_OUTSIDE

__all__ = ["gather"]


def gather(
    const uint8_t[::1] data not None,
    const uint64_t[::1] offsets not None,
    const uint32_t[::1] sizes not None,
    uint8_t[::1] out not None,
) -> int:
    """Copy pieces of a buffer, one behind the other. Nothing in the arrays is trusted.

    Parameters
    ----------
    data : (m,) uint8, C-contiguous, may be read-only
        Where the pieces are.
    offsets : (n,) uint64, C-contiguous, may be read-only
        Of each piece in `data`; may overlap and repeat.
    sizes : (n,) uint32, C-contiguous, may be read-only
        Bytes of each piece; of one without bytes the offset means nothing.
    out : (k,) uint8, C-contiguous, writable
        Receives them; does not overlap `data`.

    Returns
    -------
    int
        Bytes of `out` that are used.

    Raises
    ------
    ValueError
        The lengths do not match, a piece leaves `data`, or `out` is too small.
    """
    cdef size_t n = sizes.shape[0], data_len = data.shape[0], out_len = out.shape[0], used = 0, bad = 0
    cdef const uint8_t *start = &data[0] if data_len else NULL
    cdef uint8_t *target = &out[0] if out_len else NULL
    cdef int status
    if offsets.shape[0] != <Py_ssize_t>n:
        raise ValueError(f"{offsets.shape[0]} offsets and {n} sizes")
    if n == 0:
        return 0
    with nogil:
        status = vmd_gather(start, data_len, &offsets[0], &sizes[0], n, target, out_len, &used, &bad)
    if status == VMD_OK:
        return used
    what = f"does not fit into {out_len} bytes"
    if status == VMD_OUTSIDE:
        what = f"leaves the {data_len} bytes of data"
    raise ValueError(f"piece {bad}, {sizes[bad]} bytes at {offsets[bad]}, {what}")
