/* What every compression engine offers. One constant struct per engine, whether it was built or not. */
#ifndef VMD_ENGINE_H
#define VMD_ENGINE_H

#include <stddef.h>
#include <stdint.h>

#include "status.h"

#define VMD_MAX_PAGE_SIZE ((size_t)1 << 20)

struct vmd_engine {
    const char *name;
    const char *codec;
    const char *missing; /* why the engine was not built, or NULL: then only the names above are set */
    int min_level, max_level, default_level;
    int trained_level; /* the level that train() is for */
    int slow_on_noise; /* asking vmd_is_incompressible() first saves more than it costs */
    const char *(*version)(void);

    /* The most that compress() may write for a page of `size` bytes, if `cap` does not hold it back. */
    size_t (*bound)(size_t size);

    /* An encoder or decoder holds all state of one thread; NULL means out of memory. */
    void *(*encoder_create)(int level, size_t page_size);
    void (*encoder_destroy)(void *encoder);

    /* Fits the encoder to pages like these: VMD_OK or VMD_NO_MEMORY. What compress() gives depends on them
     * from then on, and on nothing else that differs between encoders. NULL where nothing can be fitted. */
    int (*train)(void *encoder, const uint8_t *pages, size_t page_count, size_t page_size);

    /* `src` must not change during the call. `cap` >= bound(n) always suffices; engines that can hold their
     * output back return VMD_NO_ROOM as soon as `cap` is not enough, the others demand cap >= bound(n). */
    int (*compress)(void *encoder, const uint8_t *src, size_t n, uint8_t *dst, size_t cap, size_t *out);

    /* `src` is hostile: VMD_BROKEN unless it is a whole stream of exactly `size` bytes; never writes more.
     * What follows a zlib stream inside `src` is ignored, as by zlib's own uncompress(). */
    void *(*decoder_create)(void);
    void (*decoder_destroy)(void *decoder);
    int (*decompress)(void *decoder, const uint8_t *src, size_t n, uint8_t *dst, size_t size);
};

/* All of them: NAME.c has vmd_engine_NAME. */
#define VMD_EACH_ENGINE(X) X(isal) X(libdeflate) X(zlib) X(lzo2) X(snappy) X(zstd)

#define VMD_DECLARE_ENGINE(name) extern const struct vmd_engine vmd_engine_##name;
VMD_EACH_ENGINE(VMD_DECLARE_ENGINE)
#undef VMD_DECLARE_ENGINE

extern const struct vmd_engine *const vmd_engines[]; /* ends with NULL */

#endif
