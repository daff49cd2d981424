from libc.stdint cimport uint8_t, uint64_t


cdef extern from "bits.h":
    void vmd_bits_set_range(uint8_t *bits, uint64_t begin, uint64_t end) noexcept nogil
    uint64_t vmd_bits_count(const uint8_t *bits, uint64_t begin, uint64_t end) noexcept nogil
    size_t vmd_bits_runs(
        const uint8_t *bits, uint64_t begin, uint64_t end, uint64_t *runs, size_t max
    ) noexcept nogil
