/* What a vmd_ function returns: 0 or a named negative status. */
#ifndef VMD_STATUS_H
#define VMD_STATUS_H

enum vmd_status {
    VMD_OK = 0,
    VMD_NO_MEMORY = -1,
    VMD_NO_ROOM = -2,   /* the result does not fit into the buffer that was given */
    VMD_BROKEN = -3,    /* the codec refused the data */
    VMD_OUTSIDE = -4,   /* an offset and size that leave the data */
    VMD_BAD_SIZE = -5,  /* a plain page that is not as long as a page */
    VMD_AGAIN = -6,     /* not done yet: look for signals and cancellation, then call again */
    VMD_ERRNO = -7,     /* a system call failed; its errno is handed out beside it */
};

#endif
