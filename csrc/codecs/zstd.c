/* Zstandard: one frame per page, with the content size in it. */
#include "codecs/engine.h"

#ifdef VMD_HAVE_ZSTD
#include <stdlib.h>
#include <zstd.h>
#include <zstd_errors.h>

struct encoder {
    ZSTD_CCtx *context;
    int level;
};

static const char *version(void)
{
    return ZSTD_versionString();
}

static void encoder_destroy(void *encoder)
{
    struct encoder *e = encoder;

    if (e)
        ZSTD_freeCCtx(e->context);
    free(e);
}

static void *encoder_create(int level, size_t page_size)
{
    struct encoder *e = calloc(1, sizeof *e);

    (void)page_size;
    if (!e)
        return NULL;
    e->level = level;
    e->context = ZSTD_createCCtx();
    if (!e->context) {
        encoder_destroy(e);
        return NULL;
    }
    return e;
}

static int compress_page(void *encoder, const uint8_t *src, size_t n, uint8_t *dst, size_t cap, size_t *out)
{
    struct encoder *e = encoder;
    size_t r = ZSTD_compressCCtx(e->context, dst, cap, src, n, e->level);

    if (ZSTD_isError(r))
        return ZSTD_getErrorCode(r) == ZSTD_error_dstSize_tooSmall ? VMD_NO_ROOM : VMD_BROKEN;
    *out = r;
    return VMD_OK;
}

static void *decoder_create(void)
{
    return ZSTD_createDCtx();
}

static void decoder_destroy(void *decoder)
{
    ZSTD_freeDCtx(decoder);
}

static int decompress_page(void *decoder, const uint8_t *src, size_t n, uint8_t *dst, size_t size)
{
    return ZSTD_decompressDCtx(decoder, dst, size, src, n) == size ? VMD_OK : VMD_BROKEN;
}

const struct vmd_engine vmd_engine_zstd = {
    .name = "zstd",
    .codec = "zstd",
    .min_level = 1,
    .max_level = 19,
    .default_level = 1,
    .version = version,
    .bound = ZSTD_compressBound,
    .encoder_create = encoder_create,
    .encoder_destroy = encoder_destroy,
    .compress = compress_page,
    .decoder_create = decoder_create,
    .decoder_destroy = decoder_destroy,
    .decompress = decompress_page,
};
#else
#ifndef VMD_WITHOUT_ZSTD
#define VMD_WITHOUT_ZSTD "not built"
#endif
const struct vmd_engine vmd_engine_zstd = {.name = "zstd", .codec = "zstd", .missing = VMD_WITHOUT_ZSTD};
#endif
