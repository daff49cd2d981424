/* zlib streams by libdeflate. */
#include "codecs/engine.h"

#ifdef VMD_HAVE_LIBDEFLATE
#include <libdeflate.h>

static const char *version(void)
{
    return LIBDEFLATE_VERSION_STRING;
}

static size_t bound(size_t size)
{
    return libdeflate_zlib_compress_bound(NULL, size);
}

static void *encoder_create(int level, size_t page_size)
{
    (void)page_size;
    return libdeflate_alloc_compressor(level);
}

static void encoder_destroy(void *encoder)
{
    libdeflate_free_compressor(encoder);
}

static int compress_page(void *encoder, const uint8_t *src, size_t n, uint8_t *dst, size_t cap, size_t *out)
{
    *out = libdeflate_zlib_compress(encoder, src, n, dst, cap);
    return *out ? VMD_OK : VMD_NO_ROOM;
}

static void *decoder_create(void)
{
    return libdeflate_alloc_decompressor();
}

static void decoder_destroy(void *decoder)
{
    libdeflate_free_decompressor(decoder);
}

static int decompress_page(void *decoder, const uint8_t *src, size_t n, uint8_t *dst, size_t size)
{
    /* No place for the actual size: then exactly `size` bytes are demanded. */
    if (libdeflate_zlib_decompress(decoder, src, n, dst, size, NULL) != LIBDEFLATE_SUCCESS)
        return VMD_BROKEN;
    return VMD_OK;
}

const struct vmd_engine vmd_engine_libdeflate = {
    .name = "libdeflate",
    .codec = "zlib",
    .min_level = 1,
    .max_level = 12,
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
#ifndef VMD_WITHOUT_LIBDEFLATE
#define VMD_WITHOUT_LIBDEFLATE "not built"
#endif
const struct vmd_engine vmd_engine_libdeflate = {
    .name = "libdeflate", .codec = "zlib", .missing = VMD_WITHOUT_LIBDEFLATE};
#endif
