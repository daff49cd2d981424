from libc.stdint cimport uint8_t, uint32_t

from vmdump.kernels.claim cimport vmd_claim
from vmdump.kernels.engines cimport vmd_engine
from vmdump.kernels.scan cimport vmd_scan


cdef extern from "pack.h":
    const uint32_t VMD_SAME_SIZE
    ctypedef struct vmd_packer "struct vmd_packer":
        const vmd_engine *engine
        int exact
        vmd_claim claim
    int vmd_packer_open(
        vmd_packer *packer, const vmd_engine *engine, int level, size_t page_size
    ) noexcept nogil
    void vmd_packer_close(vmd_packer *packer) noexcept nogil
    int vmd_packer_train(vmd_packer *packer, const uint8_t *pages, size_t page_count) noexcept nogil
    size_t vmd_pack_bound(const vmd_packer *packer, size_t page_count) noexcept nogil
    int vmd_pack(
        vmd_packer *packer, const vmd_scan *scan, uint8_t *out, size_t cap, uint32_t *sizes, size_t *used,
        size_t *bad_page, int *error
    ) noexcept nogil
