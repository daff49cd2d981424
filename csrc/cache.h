/* The write cache: large aligned writes out of small ones, in front of a file descriptor. */
#ifndef VMD_CACHE_H
#define VMD_CACHE_H

#include <stddef.h>
#include <stdint.h>

#include "claim.h"
#include "status.h"

#define VMD_CACHE_ALIGN 4096u

enum vmd_cache_stream { VMD_STREAM_SOCKET, VMD_STREAM_NOWAIT, VMD_STREAM_PIECES };

/* Buffer and file are laid side by side: buffer[k] goes to file offset `base` + k, and `base` is aligned, so
 * that whatever is aligned in the file is aligned in memory too, as O_DIRECT demands. */
struct vmd_cache {
    int fd;
    int direct_fd; /* the same file opened with O_DIRECT, or -1 */
    int seekable;
    enum vmd_cache_stream stream; /* how to write without blocking if not seekable */
    uint8_t *buffer;
    size_t capacity;
    size_t head, fill; /* buffer[head, fill) is not written yet */
    uint64_t base;
    uint64_t written; /* bytes the kernel has taken */
    int failure;      /* errno of the system call that failed, or 0 */
    struct vmd_claim claim;
};

/* `capacity` must be a positive multiple of VMD_CACHE_ALIGN. */
int vmd_cache_open(struct vmd_cache *cache, int fd, int direct_fd, int seekable, size_t capacity,
                   uint64_t offset);
void vmd_cache_close(struct vmd_cache *cache); /* what is not flushed is dropped; the descriptors stay open */

/* File offset of the next byte that is appended. */
uint64_t vmd_cache_position(const struct vmd_cache *cache);

/* Appends data[*taken, size) and advances *taken. VMD_AGAIN after a system call that was interrupted, that
 * would have blocked for 100 ms, or that was one of several: call again with the same arguments. Not to
 * be called after VMD_ERRNO, when `failure` says what has failed. */
int vmd_cache_write(struct vmd_cache *cache, const uint8_t *data, size_t size, size_t *taken);

/* Hands everything to the kernel, then goes on at file offset `next`: another one only if seekable. Status
 * as above. */
int vmd_cache_flush(struct vmd_cache *cache, uint64_t next);

#endif
