from libc.stdint cimport int64_t, uint8_t, uint64_t

from vmdump.kernels.zero cimport vmd_zero_fn


cdef extern from "scan.h":
    enum:
        VMD_PAGE_ZERO
        VMD_PAGE_SAME
        VMD_PAGE_CLEARED
        VMD_PAGE_NEW
    ctypedef struct vmd_run "struct vmd_run":
        int64_t begin
        int64_t end
        int64_t fd
        int64_t offset
    ctypedef struct vmd_scan "struct vmd_scan":
        const uint8_t *bytes
        const vmd_run *runs
        size_t run_count
        size_t page_size
        size_t page_count
        vmd_zero_fn zero
        const uint64_t *key
        const uint64_t *known
        uint64_t *hashes
    size_t vmd_first_bad_run(const vmd_run *runs, size_t count, int64_t size) noexcept nogil
    int vmd_scan_chunk(const vmd_scan *scan, uint8_t *out, uint8_t *kinds, int *error) noexcept nogil


cdef class PageScan:
    cdef vmd_scan scan
    cdef const uint8_t[::1] _mem
    cdef const int64_t[:, ::1] _runs
    cdef const uint64_t[::1] _key
    cdef const uint64_t[::1] _known
    cdef uint64_t[::1] _hashes
    cdef int _take_mem(self, mem) except -1
    cdef int _take_runs(self, runs, page_count) except -1
    cdef int _take_hashes(self, key, known, hashes) except -1
