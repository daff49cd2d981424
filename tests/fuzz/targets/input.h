/* What the targets share: numbers and buffers out of the fuzzer's bytes, and a way to say that a promise broke. */
#ifndef FUZZ_INPUT_H
#define FUZZ_INPUT_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define PROMISE(condition)                                                                                     \
    do {                                                                                                       \
        if (!(condition)) {                                                                                    \
            fprintf(stderr, "%s:%d: broken promise: %s\n", __FILE__, __LINE__, #condition);                    \
            abort();                                                                                           \
        }                                                                                                      \
    } while (0)

struct input {
    const uint8_t *data;
    size_t size;
};

/* The next `size` bytes, filled up with zeros where the input ends. */
static inline void take(struct input *in, void *out, size_t size)
{
    size_t have = size < in->size ? size : in->size;

    memset(out, 0, size);
    if (have)
        memcpy(out, in->data, have);
    in->data += have;
    in->size -= have;
}

static inline uint64_t take_number(struct input *in, size_t width)
{
    uint64_t value = 0;

    take(in, &value, width);
    return value;
}

/* A buffer whose last byte is followed by a page that nobody may touch, and whose first one is preceded by
 * another: the codec libraries are not instrumented, so the sanitizers do not see what they do. */
struct guarded {
    uint8_t *mapping, *bytes;
    size_t mapped, size;
};

static inline struct guarded guarded_alloc(size_t size)
{
    const size_t guard = 4096;
    size_t body = (size + guard - 1) / guard * guard;
    struct guarded g = {.mapped = body + 2 * guard, .size = size};

    g.mapping = mmap(NULL, g.mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    PROMISE(g.mapping != MAP_FAILED);
    PROMISE(mprotect(g.mapping, guard, PROT_NONE) == 0);
    PROMISE(mprotect(g.mapping + guard + body, guard, PROT_NONE) == 0);
    g.bytes = g.mapping + guard + body - size;
    return g;
}

static inline void guarded_free(struct guarded *g)
{
    munmap(g->mapping, g->mapped);
}

#endif
