from libc.stdint cimport uint8_t


cdef extern from "zero.h":
    ctypedef int (*vmd_zero_fn)(const uint8_t *mem, size_t size) noexcept nogil


cdef vmd_zero_fn zero_kernel(name) except NULL
