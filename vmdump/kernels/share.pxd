from libc.stdint cimport uint8_t, uint32_t, uint64_t


cdef extern from "share.h":
    enum:
        VMD_SHARE_ENTRIES
    ctypedef struct vmd_shared "struct vmd_shared":
        pass
    size_t vmd_share(
        vmd_shared *table, uint8_t *data, const uint32_t *sizes, const uint64_t *hashes, size_t page_count,
        uint64_t next, uint64_t *offsets
    ) noexcept nogil
