/* zlib streams by zlib. The stream is made once and reset per page: compress2() allocates 256 KiB a page. */
#include "codecs/engine.h"

#ifdef VMD_HAVE_ZLIB
#define ZLIB_CONST
#include <stdlib.h>
#include <zlib.h>

static const char *version(void)
{
    return zlibVersion();
}

static size_t bound(size_t size)
{
    return compressBound((uLong)size);
}

static void *encoder_create(int level, size_t page_size)
{
    z_stream *z = calloc(1, sizeof *z);

    (void)page_size;
    if (z && deflateInit(z, level) != Z_OK) {
        free(z);
        return NULL;
    }
    return z;
}

static void encoder_destroy(void *encoder)
{
    if (encoder)
        deflateEnd(encoder);
    free(encoder);
}

static int compress_page(void *encoder, const uint8_t *src, size_t n, uint8_t *dst, size_t cap, size_t *out)
{
    z_stream *z = encoder;
    int r;

    if (deflateReset(z) != Z_OK)
        return VMD_BROKEN;
    z->next_in = src;
    z->avail_in = (uInt)n;
    z->next_out = dst;
    z->avail_out = (uInt)cap;
    r = deflate(z, Z_FINISH);
    if (r == Z_OK || r == Z_BUF_ERROR)
        return VMD_NO_ROOM;
    if (r != Z_STREAM_END)
        return VMD_BROKEN;
    *out = z->total_out;
    return VMD_OK;
}

static void *decoder_create(void)
{
    z_stream *z = calloc(1, sizeof *z);

    if (z && inflateInit(z) != Z_OK) {
        free(z);
        return NULL;
    }
    return z;
}

static void decoder_destroy(void *decoder)
{
    if (decoder)
        inflateEnd(decoder);
    free(decoder);
}

static int decompress_page(void *decoder, const uint8_t *src, size_t n, uint8_t *dst, size_t size)
{
    z_stream *z = decoder;

    if (inflateReset(z) != Z_OK)
        return VMD_BROKEN;
    z->next_in = src;
    z->avail_in = (uInt)n;
    z->next_out = dst;
    z->avail_out = (uInt)size;
    return inflate(z, Z_FINISH) == Z_STREAM_END && z->total_out == size ? VMD_OK : VMD_BROKEN;
}

const struct vmd_engine vmd_engine_zlib = {
    .name = "zlib",
    .codec = "zlib",
    .min_level = 1,
    .max_level = 9,
    .default_level = 1,
    .version = version,
    .bound = bound,
    .encoder_create = encoder_create,
    .encoder_destroy = encoder_destroy,
    .slow_on_noise = 1,
    .compress = compress_page,
    .decoder_create = decoder_create,
    .decoder_destroy = decoder_destroy,
    .decompress = decompress_page,
};
#else
#ifndef VMD_WITHOUT_ZLIB
#define VMD_WITHOUT_ZLIB "not built"
#endif
const struct vmd_engine vmd_engine_zlib = {.name = "zlib", .codec = "zlib", .missing = VMD_WITHOUT_ZLIB};
#endif
