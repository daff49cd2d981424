from libc.stdint cimport uint8_t, uint64_t

from vmdump.kernels.claim cimport vmd_claim


cdef extern from "cache.h":
    enum:
        VMD_CACHE_ALIGN
    ctypedef struct vmd_cache "struct vmd_cache":
        int seekable
        uint64_t written
        int failure
        vmd_claim claim
    int vmd_cache_open(
        vmd_cache *cache, int fd, int direct_fd, int seekable, size_t capacity, uint64_t offset
    ) noexcept nogil
    void vmd_cache_close(vmd_cache *cache) noexcept nogil
    uint64_t vmd_cache_position(const vmd_cache *cache) noexcept nogil
    int vmd_cache_write(vmd_cache *cache, const uint8_t *data, size_t size, size_t *taken) noexcept nogil
    int vmd_cache_flush(vmd_cache *cache, uint64_t next) noexcept nogil
