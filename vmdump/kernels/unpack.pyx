"""Chunks of pages out of the bytes of a dump, by the native engines."""

cimport cython
from cpython.bytes cimport PyBytes_AsString, PyBytes_FromStringAndSize
from libc.stdint cimport UINT32_MAX, uint8_t, uint32_t, uint64_t

from vmdump.kernels.claim cimport take, vmd_claim_drop
from vmdump.kernels.engines cimport checked_page_size, find_engine
from vmdump.kernels.status cimport VMD_BAD_SIZE, VMD_OK, VMD_OUTSIDE

from vmdump.errors import CodecError

__all__ = ["Unpacker"]


@cython.final
cdef class Unpacker:
    """Unpacks pages with one native engine; for one thread at a time.

    Parameters
    ----------
    engine : str
        One of `vmdump.kernels.engines.native_engines`.
    page_size : int
        Bytes, 1..1 MiB.

    Raises
    ------
    EngineUnavailable
        The engine was not built.
    RequestError
        The page size is out of range.
    """

    cdef vmd_unpacker _unpacker
    cdef readonly str engine
    cdef readonly size_t page_size

    def __cinit__(self, engine, page_size):
        self.engine = engine
        self.page_size = checked_page_size(page_size)
        if vmd_unpacker_open(&self._unpacker, find_engine(engine), self.page_size) != VMD_OK:
            raise MemoryError(f"engine {engine}: no memory for its context")

    def __dealloc__(self):
        vmd_unpacker_close(&self._unpacker)

    def unpack(
        self,
        const uint8_t[::1] data not None,
        const uint64_t[::1] offsets not None,
        const uint32_t[::1] sizes not None,
        const uint8_t[::1] compressed not None,
        uint8_t[::1] out not None,
    ) -> None:
        """Unpack pages. Nothing in the arrays or the data is trusted.

        Parameters
        ----------
        data : (m,) uint8, C-contiguous, may be read-only
            Where the pages are.
        offsets : (n,) uint64, C-contiguous, may be read-only
            Of each page, relative to `data`.
        sizes : (n,) uint32, C-contiguous, may be read-only
            Bytes of each page in `data`; 0 is a zero page.
        compressed : (n,) uint8, C-contiguous, may be read-only
            0 where a page is plain, and then as long as a page.
        out : (n * page_size,) uint8, C-contiguous, writable
            The pages. After an error those from the bad one on are undefined.

        Raises
        ------
        ValueError
            The lengths do not match.
        CodecError
            A page leaves the data, is plain with a wrong size, or is not a stream of exactly `page_size`
            bytes; `page` is the index in this call.
        RuntimeError
            Another thread is in a call of this object.
        """
        cdef size_t n = sizes.shape[0], data_len = data.shape[0], bad = 0
        cdef const uint8_t *start = &data[0] if data_len else NULL
        cdef int status
        if offsets.shape[0] != <Py_ssize_t>n or compressed.shape[0] != <Py_ssize_t>n:
            raise ValueError(f"{offsets.shape[0]} offsets, {n} sizes and {compressed.shape[0]} flags")
        if out.shape[0] != <Py_ssize_t>(n * self.page_size):
            raise ValueError(f"out has {out.shape[0]} bytes, not {n} pages of {self.page_size}")
        if n == 0:
            return
        status = self._run(start, data_len, &offsets[0], &sizes[0], &compressed[0], n, &out[0], &bad)
        if status == VMD_OK:
            return
        what = f"its {sizes[bad]} bytes at {offsets[bad]} are not a stream of {self.page_size} bytes"
        if status == VMD_OUTSIDE:
            what = f"its {sizes[bad]} bytes at {offsets[bad]} leave the {data_len} bytes of data"
        elif status == VMD_BAD_SIZE:
            what = f"it is plain with {sizes[bad]} bytes instead of {self.page_size}"
        raise CodecError(f"{self.engine}: page {bad}: {what}", engine=self.engine, page=bad)

    def unpack_page(self, const uint8_t[::1] data not None) -> bytes:
        """Unpack one page: what `unpack` does, in a third of the time for a single one.

        Parameters
        ----------
        data : (n,) uint8, C-contiguous, may be read-only
            One compressed stream, and nothing else.

        Raises
        ------
        CodecError
            It is not a stream of exactly `page_size` bytes; `page` is 0.
        RuntimeError
            Another thread is in a call of this object.
        """
        cdef uint64_t offset = 0
        cdef uint32_t size = 0
        cdef uint8_t compressed = 1
        cdef size_t length = data.shape[0], bad = 0
        cdef bytes page = PyBytes_FromStringAndSize(NULL, self.page_size)
        cdef uint8_t *out = <uint8_t *>PyBytes_AsString(page)
        if 0 < length <= UINT32_MAX:
            size = <uint32_t>length
            if self._run(&data[0], length, &offset, &size, &compressed, 1, out, &bad) == VMD_OK:
                return page
        raise CodecError(
            f"{self.engine}: {length} bytes are not a stream of {self.page_size} bytes",
            engine=self.engine,
            page=0,
        )

    cdef int _run(
        self, const uint8_t *data, size_t data_len, const uint64_t *offsets, const uint32_t *sizes,
        const uint8_t *compressed, size_t page_count, uint8_t *out, size_t *bad
    ) except 1:
        cdef int status
        take(&self._unpacker.claim, f"{self.engine} Unpacker")
        with nogil:
            status = vmd_unpack(
                &self._unpacker, data, data_len, offsets, sizes, compressed, page_count, out, bad
            )
        vmd_claim_drop(&self._unpacker.claim)
        return status
