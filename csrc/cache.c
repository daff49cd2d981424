/* The write cache. */
#define _GNU_SOURCE
#include "cache.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

enum {
    POLL_MS = 100,           /* how long a stalled reader can keep a cancel waiting */
    MAX_CALL = 16 << 20,     /* bytes per system call, for the same reason: 36 ms at 465 MB/s */
    PIECE = 4096,            /* PIPE_BUF: what a pipe that poll() calls writable takes without blocking */
    ROUND = 16 << 20,        /* bytes before signals and cancellation are looked at */
    DIRECT = 64 << 10,       /* bytes from which on waiting for the disk costs less than the page cache: of a
                                paused guest 10,000 changed pages took 0.8 s past it, 0.3 s into it */
    BYPASS = 256 << 10,      /* bytes from which on a system call costs less than a copy into the buffer */
};

/* Moves the empty buffer to a file offset. */
static void move(struct vmd_cache *cache, uint64_t offset)
{
    cache->head = cache->fill = offset % VMD_CACHE_ALIGN;
    cache->base = offset - cache->fill;
}

int vmd_cache_open(struct vmd_cache *cache, int fd, int direct_fd, int seekable, size_t capacity,
                   uint64_t offset)
{
    struct stat st;
    void *buffer;

    if (posix_memalign(&buffer, VMD_CACHE_ALIGN, capacity) != 0)
        return VMD_NO_MEMORY;
    *cache = (struct vmd_cache){.fd = fd, .direct_fd = direct_fd, .seekable = seekable, .buffer = buffer,
                                .capacity = capacity};
    cache->stream = fstat(fd, &st) == 0 && S_ISSOCK(st.st_mode) ? VMD_STREAM_SOCKET : VMD_STREAM_NOWAIT;
    vmd_claim_init(&cache->claim);
    move(cache, offset);
    return VMD_OK;
}

void vmd_cache_close(struct vmd_cache *cache)
{
    free(cache->buffer);
    cache->buffer = NULL;
}

uint64_t vmd_cache_position(const struct vmd_cache *cache)
{
    return cache->base + cache->fill;
}

static size_t smaller(size_t a, size_t b)
{
    return a < b ? a : b;
}

/* One pwrite() of a part of data[0, size) to `offset`, by way of direct_fd if the part can be aligned. */
static ssize_t write_at(struct vmd_cache *cache, const uint8_t *data, size_t size, uint64_t offset)
{
    size_t ragged = (size_t)(-offset % VMD_CACHE_ALIGN); /* up to the next aligned offset */
    ssize_t n;

    size = smaller(size, MAX_CALL);
    if (cache->direct_fd >= 0 && size >= ragged + DIRECT) {
        if (ragged) {
            size = ragged;
        } else if ((uintptr_t)data % VMD_CACHE_ALIGN == 0) {
            n = pwrite(cache->direct_fd, data, size - size % VMD_CACHE_ALIGN, (off_t)offset);
            if (n >= 0 || errno != EINVAL)
                return n;
            cache->direct_fd = -1; /* this file system opens with O_DIRECT and then refuses it */
        }
    }
    return pwrite(cache->fd, data, size, (off_t)offset);
}

/* One write of a part of data[0, size) to a pipe or socket that does not block: -1 with EAGAIN if nothing
 * could be written within POLL_MS. What is neither, a terminal, may block in the middle of a piece until a
 * signal arrives. */
static ssize_t write_stream(struct vmd_cache *cache, const uint8_t *data, size_t size)
{
    struct pollfd p = {.fd = cache->fd, .events = POLLOUT};
    ssize_t n = -1;
    int ready;

    size = smaller(size, MAX_CALL);
    if (cache->stream == VMD_STREAM_NOWAIT) {
        struct iovec v = {.iov_base = (void *)data, .iov_len = size};
        n = pwritev2(cache->fd, &v, 1, -1, RWF_NOWAIT);
        if (n < 0 && (errno == EOPNOTSUPP || errno == EINVAL || errno == ENOSYS))
            cache->stream = VMD_STREAM_PIECES; /* older kernels' pipes, and terminals */
        else if (n >= 0 || errno != EAGAIN)
            return n;
    } else if (cache->stream == VMD_STREAM_SOCKET) {
        n = send(cache->fd, data, size, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (n >= 0 || errno != EAGAIN)
            return n;
    }
    ready = poll(&p, 1, POLL_MS);
    if (ready <= 0) {
        if (ready == 0)
            errno = EAGAIN;
        return -1;
    }
    if (cache->stream == VMD_STREAM_PIECES)
        return write(cache->fd, data, smaller(size, PIECE));
    return 0; /* writable now: the caller's next attempt finds out how much */
}

/* One attempt at data[0, size), of which *n were written. VMD_AGAIN if it was interrupted or would block. */
static int attempt(struct vmd_cache *cache, const uint8_t *data, size_t size, uint64_t offset, size_t *n)
{
    ssize_t r = cache->seekable ? write_at(cache, data, size, offset) : write_stream(cache, data, size);

    *n = 0;
    if (r < 0 && (errno == EINTR || errno == EAGAIN))
        return VMD_AGAIN;
    if (r < 0) {
        cache->failure = errno;
        return VMD_ERRNO;
    }
    if (r == 0 && cache->seekable) { /* no file system does this for size > 0, and it would never end */
        cache->failure = EIO;
        return VMD_ERRNO;
    }
    if (r == 0)
        return VMD_AGAIN;
    *n = (size_t)r;
    cache->written += *n;
    /* A signal ends a write that has begun without EINTR: a short one. */
    if (!cache->seekable && cache->stream == VMD_STREAM_PIECES && *n < smaller(size, PIECE))
        return VMD_AGAIN;
    return VMD_OK;
}

/* Hands everything to the kernel, unless that takes more than a round. */
static int empty(struct vmd_cache *cache)
{
    size_t round = 0, n;

    while (cache->head < cache->fill) {
        if (round >= ROUND)
            return VMD_AGAIN;
        int status = attempt(cache, cache->buffer + cache->head, cache->fill - cache->head,
                             cache->base + cache->head, &n);
        cache->head += n;
        round += n;
        if (status != VMD_OK)
            return status;
    }
    move(cache, vmd_cache_position(cache));
    return VMD_OK;
}

int vmd_cache_flush(struct vmd_cache *cache, uint64_t next)
{
    int status = empty(cache);

    if (status == VMD_OK)
        move(cache, next);
    return status;
}

/* Whether data goes to the kernel from where it is: if there is enough, and it is aligned as O_DIRECT needs. */
static int bypasses(const struct vmd_cache *cache, const uint8_t *data, size_t size, uint64_t offset)
{
    if (size < smaller(BYPASS, cache->capacity))
        return 0;
    return !cache->seekable || cache->direct_fd < 0 || ((uintptr_t)data - offset) % VMD_CACHE_ALIGN == 0;
}

int vmd_cache_write(struct vmd_cache *cache, const uint8_t *data, size_t size, size_t *taken)
{
    size_t round = 0, n;

    while (*taken < size) {
        const uint8_t *rest = data + *taken;
        size_t left = size - *taken;
        uint64_t offset = vmd_cache_position(cache);
        int status;

        if (cache->fill == cache->capacity ||
            (cache->head < cache->fill && bypasses(cache, rest, left, offset))) {
            status = empty(cache);
            if (status != VMD_OK)
                return status;
        } else if (bypasses(cache, rest, left, offset)) {
            if (round >= ROUND)
                return VMD_AGAIN;
            status = attempt(cache, rest, left, offset, &n);
            move(cache, offset + n);
            *taken += n;
            round += n;
            if (status != VMD_OK)
                return status;
        } else {
            n = smaller(left, cache->capacity - cache->fill);
            memcpy(cache->buffer + cache->fill, rest, n);
            cache->fill += n;
            *taken += n;
        }
    }
    return VMD_OK;
}
