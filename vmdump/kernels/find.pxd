from libc.stdint cimport uint8_t, uint64_t


cdef extern from "find.h":
    void vmd_find(
        const uint8_t *data, size_t data_len, const uint8_t *pattern, size_t pattern_len, size_t period,
        uint64_t *out, size_t room, size_t *from_, size_t *count
    ) noexcept nogil
