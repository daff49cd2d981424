from libc.stdint cimport uint8_t, uint32_t, uint64_t


cdef extern from "gather.h":
    int vmd_gather(
        const uint8_t *data, size_t data_len, const uint64_t *offsets, const uint32_t *sizes, size_t count,
        uint8_t *out, size_t out_len, size_t *used, size_t *bad
    ) noexcept nogil
