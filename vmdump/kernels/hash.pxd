from libc.stdint cimport uint8_t, uint64_t


cdef extern from "hash.h":
    enum:
        VMD_HASH_GRAIN
        VMD_HASH_KEY_WORDS
    void vmd_hash_pages(
        const uint8_t *data, size_t page_size, size_t count, const uint64_t *key, uint64_t *out
    ) noexcept nogil


cdef inline int check_hashing(page_size, Py_ssize_t key_words) except -1:
    """Raise ValueError unless pages of this size can be hashed with a key of that many words."""
    if page_size <= 0 or page_size % VMD_HASH_GRAIN:
        raise ValueError(f"page_size: {page_size} is not a positive multiple of {VMD_HASH_GRAIN}")
    if key_words != VMD_HASH_KEY_WORDS:
        raise ValueError(f"key: {key_words} words, but a key has {VMD_HASH_KEY_WORDS}")
    return 0
