/* LZO1X-1 by lzo2. */
#include "codecs/engine.h"

#ifdef VMD_HAVE_LZO2
#include <lzo/lzo1x.h>
#include <stdlib.h>

static const char *version(void)
{
    return lzo_version_string();
}

static size_t bound(size_t size)
{
    return size + size / 16 + 64 + 3; /* the worst case that LZO's own documentation gives */
}

static void *encoder_create(int level, size_t page_size)
{
    (void)level;
    (void)page_size;
    return lzo_init() == LZO_E_OK ? malloc(LZO1X_1_MEM_COMPRESS) : NULL;
}

static int compress_page(void *encoder, const uint8_t *src, size_t n, uint8_t *dst, size_t cap, size_t *out)
{
    lzo_uint written = 0;

    if (cap < bound(n))
        return VMD_NO_ROOM;
    if (lzo1x_1_compress(src, n, dst, &written, encoder) != LZO_E_OK)
        return VMD_BROKEN;
    *out = written;
    return VMD_OK;
}

/* Decompression keeps no state, but NULL means out of memory. */
static void *decoder_create(void)
{
    return lzo_init() == LZO_E_OK ? malloc(1) : NULL;
}

static int decompress_page(void *decoder, const uint8_t *src, size_t n, uint8_t *dst, size_t size)
{
    lzo_uint written = size;

    (void)decoder;
    if (lzo1x_decompress_safe(src, n, dst, &written, NULL) != LZO_E_OK || written != size)
        return VMD_BROKEN;
    return VMD_OK;
}

const struct vmd_engine vmd_engine_lzo2 = {
    .name = "lzo2",
    .codec = "lzo",
    .min_level = 1,
    .max_level = 1,
    .default_level = 1,
    .version = version,
    .bound = bound,
    .encoder_create = encoder_create,
    .encoder_destroy = free,
    .compress = compress_page,
    .decoder_create = decoder_create,
    .decoder_destroy = free,
    .decompress = decompress_page,
};
#else
#ifndef VMD_WITHOUT_LZO2
#define VMD_WITHOUT_LZO2 "not built"
#endif
const struct vmd_engine vmd_engine_lzo2 = {.name = "lzo2", .codec = "lzo", .missing = VMD_WITHOUT_LZO2};
#endif
