"""A keyed hash of 64 bits per page, for finding the pages that have changed."""

from libc.stdint cimport uint8_t, uint64_t

__all__ = ["KEY_WORDS", "hash_pages"]

KEY_WORDS = VMD_HASH_KEY_WORDS


def hash_pages(
    const uint8_t[::1] data not None, page_size, const uint64_t[::1] key not None, uint64_t[::1] out not None
) -> None:
    """Hash each page.

    Two different pages have the same hash with a chance of 2^-63, whatever they hold, if whoever filled them
    does not know the key. Only hashes of the same page size, key and byte order compare.

    Parameters
    ----------
    data : (n * page_size,) uint8, C-contiguous, may be read-only
        The pages. They may change meanwhile: the hash of such a page is any number.
    page_size : int
        Bytes, a positive multiple of 64.
    key : (KEY_WORDS,) uint64, C-contiguous, may be read-only
        Uniformly random words, new for each dump and never told.
    out : (n,) uint64, C-contiguous, writable
        Receives the hashes.

    Raises
    ------
    ValueError
        A size is wrong, or `out` is read-only.
    """
    length = data.shape[0]
    check_hashing(page_size, key.shape[0])
    if length % page_size:
        raise ValueError(f"data: {length} bytes are not a whole number of pages of {page_size}")
    if out.shape[0] != length // page_size:
        raise ValueError(f"out: room for {out.shape[0]} hashes, but there are {length // page_size} pages")
    cdef size_t size, count = out.shape[0]
    if count:
        size = page_size
        with nogil:
            vmd_hash_pages(&data[0], size, count, &key[0], &out[0])
