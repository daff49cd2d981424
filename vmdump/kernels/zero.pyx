"""Zero-page test."""

from libc.stdint cimport uint8_t

import platform

import numpy as np

from vmdump.errors import EngineUnavailable, RequestError

__all__ = ["default_kernel", "is_zero", "kernels", "zero_pages"]


def kernels() -> dict:
    """List the zero-page kernels, and why one is not usable.

    Returns
    -------
    dict of str to str
        Every kernel's name; the value is empty if the kernel is usable here, else the reason why not.
    """
    reasons = {}
    for i in range(VMD_ZERO_COUNT):
        name = vmd_zero_name(i).decode()
        state = vmd_zero_kernel_state(i)
        if state == VMD_ZERO_USABLE:
            reasons[name] = ""
        elif state == VMD_ZERO_NOT_BUILT:
            reasons[name] = f"not built for {platform.machine()}"
        else:
            reasons[name] = f"this CPU has no {name.upper()}"
    return reasons


def default_kernel() -> str:
    """Name the kernel that is used when none is named: the one measured fastest among the usable."""
    return vmd_zero_name(vmd_zero_default()).decode()


cdef vmd_zero_fn zero_kernel(name) except NULL:
    """The function of a kernel by its name, or of the default; an error if it is not usable."""
    if name is None:
        return vmd_zero_kernel(vmd_zero_default())
    reasons = kernels()
    if name not in reasons:
        raise RequestError(
            f"zero kernel {name!r} does not exist; there are {', '.join(reasons)}", parameter="zero_kernel"
        )
    if reasons[name]:
        usable = tuple(other for other, reason in reasons.items() if not reason)
        raise EngineUnavailable(
            f"zero kernel {name}: {reasons[name]}; usable here: {', '.join(usable)}",
            engine=name,
            available=usable,
        )
    return vmd_zero_kernel(list(reasons).index(name))


def is_zero(const uint8_t[::1] mem not None, kernel=None) -> bool:
    """Tell whether every byte is zero.

    Parameters
    ----------
    mem : (n,) uint8, C-contiguous, may be read-only
        Any length; no bytes are all zero.
    kernel : str or None
        A kernel that has to be used, or None for the default.

    Raises
    ------
    RequestError
        No kernel has this name.
    EngineUnavailable
        The kernel is not usable here.
    """
    cdef vmd_zero_fn test = zero_kernel(kernel)
    cdef size_t size = mem.shape[0]
    cdef const uint8_t *start = &mem[0] if size else NULL
    cdef int result
    with nogil:
        result = test(start, size)
    return result != 0


def zero_pages(const uint8_t[::1] mem not None, page_size, kernel=None):
    """Tell for each page whether it is all zero.

    Parameters
    ----------
    mem : (n * page_size,) uint8, C-contiguous, may be read-only
        The pages.
    page_size : int
        Bytes, > 0.
    kernel : str or None
        A kernel that has to be used, or None for the default.

    Returns
    -------
    (n,) bool
        True where a page is all zero.

    Raises
    ------
    RequestError
        `page_size` is not positive or does not divide the length, or no kernel has this name.
    EngineUnavailable
        The kernel is not usable here.
    """
    cdef vmd_zero_fn test = zero_kernel(kernel)
    cdef size_t length = mem.shape[0]
    if page_size <= 0 or length % page_size:
        raise RequestError(
            f"page_size: {length} bytes are not a whole number of pages of {page_size}", parameter="page_size"
        )
    cdef size_t size = page_size
    cdef size_t count = length // size
    result = np.empty(count, dtype=np.uint8)
    cdef uint8_t[::1] zero = result
    if count:
        with nogil:
            vmd_zero_pages(test, &mem[0], count, size, &zero[0])
    return result.view(np.bool_)
