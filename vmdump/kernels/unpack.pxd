from libc.stdint cimport uint8_t, uint32_t, uint64_t

from vmdump.kernels.claim cimport vmd_claim
from vmdump.kernels.engines cimport vmd_engine


cdef extern from "unpack.h":
    ctypedef struct vmd_unpacker "struct vmd_unpacker":
        vmd_claim claim
    int vmd_unpacker_open(vmd_unpacker *unpacker, const vmd_engine *engine, size_t page_size) noexcept nogil
    void vmd_unpacker_close(vmd_unpacker *unpacker) noexcept nogil
    int vmd_unpack(
        vmd_unpacker *unpacker, const uint8_t *data, size_t data_len, const uint64_t *offsets,
        const uint32_t *sizes, const uint8_t *compressed, size_t page_count, uint8_t *out, size_t *bad_page
    ) noexcept nogil
