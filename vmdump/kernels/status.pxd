"""What C functions return, and the exception of a read that failed."""

from cpython.exc cimport PyErr_SetFromErrno
from libc cimport errno


cdef extern from "status.h":
    enum:
        VMD_OK
        VMD_OUTSIDE
        VMD_BAD_SIZE
        VMD_AGAIN
        VMD_ERRNO


cdef inline int raise_read_error(int error) except -1:
    """Raise the OSError of an errno, or one without it for 0: the file ended."""
    if error == 0:
        raise OSError("the file ended")
    errno.errno = error
    PyErr_SetFromErrno(OSError)
