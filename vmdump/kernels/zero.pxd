from libc.stdint cimport uint8_t


cdef extern from "zero.h":
    ctypedef int (*vmd_zero_fn)(const uint8_t *mem, size_t size) noexcept nogil
    enum:
        VMD_ZERO_COUNT
    enum vmd_zero_state:
        VMD_ZERO_USABLE
        VMD_ZERO_NOT_BUILT
        VMD_ZERO_NO_CPU
    const char *vmd_zero_name(int id) noexcept nogil
    vmd_zero_state vmd_zero_kernel_state(int id) noexcept nogil
    vmd_zero_fn vmd_zero_kernel(int id) noexcept nogil
    int vmd_zero_default() noexcept nogil
    void vmd_zero_pages(
        vmd_zero_fn test, const uint8_t *mem, size_t page_count, size_t page_size, uint8_t *zero
    ) noexcept nogil


cdef vmd_zero_fn zero_kernel(name) except NULL
