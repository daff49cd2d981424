from libc.stdint cimport uint8_t, uint64_t


cdef extern from "records.h":
    ctypedef struct vmd_stream "struct vmd_stream":
        int fd
        const uint8_t *bytes
        uint64_t size
    int vmd_records_scan(
        const vmd_stream *stream, uint64_t *position, uint64_t *begins, uint64_t *ends, uint64_t *places,
        size_t max, size_t *count, int *error
    ) noexcept nogil
    int vmd_records_read(
        const vmd_stream *stream, const uint64_t *begins, const uint64_t *ends, const uint64_t *places,
        size_t count, uint64_t offset, uint8_t *out, uint64_t length, int *error
    ) noexcept nogil
