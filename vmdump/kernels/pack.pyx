"""Chunks of pages to bytes and back, by the native engines.

The size of a page says everything about it: 0 is a zero page of which nothing is stored, the page size is a
page stored plain, anything between is one compressed stream, and `SAME_SIZE` is a page that holds what was
known of it, of which nothing is stored either.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport UINT32_MAX, uint8_t, uint32_t, uint64_t

from vmdump.kernels.scan cimport PageScan, fail, vmd_scan

from vmdump.errors import CodecError, EngineUnavailable, RequestError

__all__ = ["NATIVE_ENGINES", "SAME_SIZE", "Packer", "Unpacker", "missing_engines", "native_engines"]


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

cdef extern from "pack.h":
    enum:
        VMD_OK
        VMD_NO_ROOM
        VMD_BROKEN
        VMD_OUTSIDE
        VMD_BAD_SIZE
        VMD_ERRNO
    const uint32_t VMD_SAME_SIZE
    ctypedef struct vmd_claim "struct vmd_claim":
        pass
    ctypedef struct vmd_packer "struct vmd_packer":
        const vmd_engine *engine
        int exact
        vmd_claim claim
    ctypedef struct vmd_unpacker "struct vmd_unpacker":
        vmd_claim claim
    bint vmd_claim_take(vmd_claim *claim) noexcept nogil
    void vmd_claim_drop(vmd_claim *claim) noexcept nogil
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
    int vmd_unpacker_open(vmd_unpacker *unpacker, const vmd_engine *engine, size_t page_size) noexcept nogil
    void vmd_unpacker_close(vmd_unpacker *unpacker) noexcept nogil
    int vmd_unpack(
        vmd_unpacker *unpacker, const uint8_t *data, size_t data_len, const uint64_t *offsets,
        const uint32_t *sizes, const uint8_t *compressed, size_t page_count, uint8_t *out, size_t *bad_page
    ) noexcept nogil


def _names() -> tuple:
    names = []
    while vmd_engines[len(names)] is not NULL:
        names.append(vmd_engines[len(names)].name.decode())
    return tuple(names)


NATIVE_ENGINES = _names()
SAME_SIZE = VMD_SAME_SIZE


cdef const vmd_engine *_engine(name) except NULL:
    """The engine of that name, which must have been built."""
    available = native_engines()
    if name in available:
        return vmd_engines[NATIVE_ENGINES.index(name)]
    reason = missing_engines().get(name, "there is no native engine of that name")
    raise EngineUnavailable(
        f"engine {name}: {reason}; this build has {', '.join(available) or 'none'}",
        engine=str(name),
        available=tuple(available),
    )


cdef size_t _page_size(page_size) except 0:
    if not 0 < page_size <= VMD_MAX_PAGE_SIZE:
        raise RequestError(
            f"page_size: {page_size} is not in 1..{VMD_MAX_PAGE_SIZE}", parameter="page_size"
        )
    return page_size


def native_engines() -> dict:
    """Describe the engines that were built.

    Returns
    -------
    dict of str to dict
        Name to ``codec``, ``version``, ``min_level``, ``max_level``, ``default_level`` and
        ``trained_level``: the level at which `Packer.train` is of use, or None.
    """
    return {
        name: {
            "codec": vmd_engines[i].codec.decode(),
            "version": vmd_engines[i].version().decode(),
            "min_level": vmd_engines[i].min_level,
            "max_level": vmd_engines[i].max_level,
            "default_level": vmd_engines[i].default_level,
            "trained_level": None if vmd_engines[i].train is NULL else vmd_engines[i].trained_level,
        }
        for i, name in enumerate(NATIVE_ENGINES)
        if vmd_engines[i].missing is NULL
    }


def missing_engines() -> dict:
    """Tell why an engine was not built.

    Returns
    -------
    dict of str to str
        Name to reason, of the engines that `native_engines` does not have.
    """
    return {
        name: vmd_engines[i].missing.decode()
        for i, name in enumerate(NATIVE_ENGINES)
        if vmd_engines[i].missing is not NULL
    }


@cython.final
cdef class Packer:
    """Packs pages with one native engine; for one thread at a time.

    Parameters
    ----------
    engine : str
        One of `native_engines`.
    page_size : int
        Bytes, 1..1 MiB.
    level : int or None
        Of the engine; None for its default.
    exact : bool
        Each page is the engine's own result, which is compressed wherever that is smaller. Otherwise pages
        that look incompressible are stored plain without asking it.

    Raises
    ------
    EngineUnavailable
        The engine was not built.
    RequestError
        The page size or the level is out of range.
    """

    cdef vmd_packer _packer
    cdef bint _open
    cdef readonly str engine
    cdef readonly int level
    cdef readonly size_t page_size

    def __cinit__(self, engine, page_size, level=None, *, exact=False):
        cdef const vmd_engine *found = _engine(engine)
        if level is None:
            level = found.default_level
        if not found.min_level <= level <= found.max_level:
            raise RequestError(
                f"level: {engine} has {found.min_level}..{found.max_level}, not {level}", parameter="level"
            )
        self.engine = engine
        self.level = level
        self.page_size = _page_size(page_size)
        if vmd_packer_open(&self._packer, found, self.level, self.page_size) != VMD_OK:
            raise MemoryError(f"engine {engine}: no memory for its context")
        self._packer.exact = exact
        self._open = True

    def __dealloc__(self):
        if self._open:
            vmd_packer_close(&self._packer)

    def bound(self, page_count) -> int:
        """Tell how many bytes `pack` needs for `page_count` pages."""
        return vmd_pack_bound(&self._packer, page_count)

    def train(self, const uint8_t[::1] pages not None) -> bool:
        """Fit the packer to pages like these, if its engine and level can be fitted; then `pack` follows.

        Packers that were trained on the same pages give the same bytes, and other bytes than all others.

        Parameters
        ----------
        pages : (n * page_size,) uint8, C-contiguous, may be read-only
            A sample: 256 pages of 4 KiB are enough, of fewer than 16 nothing is learnt. They must not change
            meanwhile.

        Returns
        -------
        bool
            False if the engine has nothing to train at this level.

        Raises
        ------
        ValueError
            The length is no whole number of pages.
        RuntimeError
            Another thread is in a call of this object.
        """
        cdef const vmd_engine *engine = self._packer.engine
        cdef size_t n = pages.shape[0] // self.page_size
        cdef int status
        if pages.shape[0] != <Py_ssize_t>(n * self.page_size):
            raise ValueError(f"{pages.shape[0]} bytes are no whole number of pages of {self.page_size}")
        if engine.train is NULL or engine.trained_level != self.level:
            return False
        if n == 0:
            return True
        if not vmd_claim_take(&self._packer.claim):
            raise RuntimeError(f"this {self.engine} Packer is in use by another thread")
        with nogil:
            status = vmd_packer_train(&self._packer, &pages[0], n)
        vmd_claim_drop(&self._packer.claim)
        if status != VMD_OK:
            raise MemoryError(f"engine {self.engine}: no memory to train it")
        return True

    def pack(self, mem not None, uint8_t[::1] out not None, uint32_t[::1] sizes not None) -> int:
        """Pack pages. The memory may change meanwhile: each page becomes what it was at some moment.

        Parameters
        ----------
        mem : PageScan, or (n * page_size,) uint8, C-contiguous, may be read-only
            The pages.
        out : (m,) uint8, C-contiguous, writable
            ``m >= bound(n)``; what lies behind the bytes used is scratch.
        sizes : (n,) uint32, C-contiguous, writable
            Bytes of each page in `out`: 0 for zero, `page_size` for plain, `SAME_SIZE` for one that holds
            what is known of it, else compressed.

        Returns
        -------
        int
            Bytes of `out` that are used; page after page without gaps.

        Raises
        ------
        ValueError
            The lengths do not belong together.
        CodecError
            The engine failed; `page` is the index in this call.
        OSError
            As of `PageScan.read`.
        RuntimeError
            Another thread is in a call of this object.
        """
        cdef PageScan pages = mem if isinstance(mem, PageScan) else PageScan(mem, self.page_size)
        cdef size_t n = sizes.shape[0], cap = out.shape[0], used = 0, bad = 0
        cdef int status, error = 0
        if pages.scan.page_count != n or pages.scan.page_size != self.page_size:
            raise ValueError(
                f"{pages.page_count} pages of {pages.page_size} bytes are not {n} pages of {self.page_size}"
            )
        if cap < vmd_pack_bound(&self._packer, n):
            raise ValueError(f"out has {cap} bytes; {n} pages need {self.bound(n)}")
        if n == 0:
            return 0
        if not vmd_claim_take(&self._packer.claim):
            raise RuntimeError(f"this {self.engine} Packer is in use by another thread")
        with nogil:
            status = vmd_pack(&self._packer, &pages.scan, &out[0], cap, &sizes[0], &used, &bad, &error)
        vmd_claim_drop(&self._packer.claim)
        if status == VMD_ERRNO:
            fail(error)
        if status != VMD_OK:
            raise CodecError(f"{self.engine} failed to compress page {bad}", engine=self.engine, page=bad)
        return used


@cython.final
cdef class Unpacker:
    """Unpacks pages with one native engine; for one thread at a time.

    Parameters
    ----------
    engine : str
        One of `native_engines`.
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
    cdef bint _open
    cdef readonly str engine
    cdef readonly size_t page_size

    def __cinit__(self, engine, page_size):
        cdef const vmd_engine *found = _engine(engine)
        self.engine = engine
        self.page_size = _page_size(page_size)
        if vmd_unpacker_open(&self._unpacker, found, self.page_size) != VMD_OK:
            raise MemoryError(f"engine {engine}: no memory for its context")
        self._open = True

    def __dealloc__(self):
        if self._open:
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
            The lengths do not belong together.
        CodecError
            A page leaves the data, is plain with a wrong size, or is no stream of exactly `page_size` bytes;
            `page` is the index in this call.
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
        if not vmd_claim_take(&self._unpacker.claim):
            raise RuntimeError(f"this {self.engine} Unpacker is in use by another thread")
        with nogil:
            status = vmd_unpack(
                &self._unpacker, start, data_len, &offsets[0], &sizes[0], &compressed[0], n, &out[0], &bad
            )
        vmd_claim_drop(&self._unpacker.claim)
        if status == VMD_OK:
            return
        if status == VMD_OUTSIDE:
            what = f"its {sizes[bad]} bytes at {offsets[bad]} leave the {data_len} bytes of data"
        elif status == VMD_BAD_SIZE:
            what = f"it is plain with {sizes[bad]} bytes instead of {self.page_size}"
        else:
            what = f"its {sizes[bad]} bytes at {offsets[bad]} are no stream of {self.page_size} bytes"
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
            It is no stream of exactly `page_size` bytes; `page` is 0.
        RuntimeError
            Another thread is in a call of this object.
        """
        cdef uint64_t offset = 0
        cdef uint32_t size = 0
        cdef uint8_t compressed = 1
        cdef size_t length = data.shape[0], bad = 0
        cdef int status = VMD_BROKEN
        cdef bytes page = PyBytes_FromStringAndSize(NULL, self.page_size)
        cdef uint8_t *out = <uint8_t *>PyBytes_AS_STRING(page)
        if 0 < length <= UINT32_MAX:
            size = <uint32_t>length
            if not vmd_claim_take(&self._unpacker.claim):
                raise RuntimeError(f"this {self.engine} Unpacker is in use by another thread")
            with nogil:
                status = vmd_unpack(
                    &self._unpacker, &data[0], length, &offset, &size, &compressed, 1, out, &bad
                )
            vmd_claim_drop(&self._unpacker.claim)
        if status != VMD_OK:
            raise CodecError(
                f"{self.engine}: {length} bytes are no stream of {self.page_size} bytes",
                engine=self.engine,
                page=0,
            )
        return page
