from libc.stdint cimport uint8_t


cdef extern from "codecs/engine.h":
    const size_t VMD_MAX_PAGE_SIZE
    ctypedef struct vmd_engine "struct vmd_engine":
        const char *name
        const char *codec
        const char *missing
        int min_level
        int max_level
        int default_level
        int trained_level
        const char *(*version)() noexcept nogil
        int (*train)(void *encoder, const uint8_t *pages, size_t page_count, size_t page_size) noexcept nogil
    const vmd_engine *vmd_engines[]


cdef const vmd_engine *find_engine(name) except NULL
cpdef size_t checked_page_size(page_size) except 0
cpdef int checked_level(engine, level, int lowest, int highest, int default) except? -1
