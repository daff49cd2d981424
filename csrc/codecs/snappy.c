/* Snappy's raw block format by libsnappy. */
#include "codecs/engine.h"

#ifdef VMD_HAVE_SNAPPY
#include <snappy-c.h>
#include <stdlib.h>

#ifndef VMD_VERSION_SNAPPY /* snappy-c.h does not tell; setup.py asks pkg-config */
#define VMD_VERSION_SNAPPY "unknown"
#endif

static const char *version(void)
{
    return VMD_VERSION_SNAPPY;
}

/* The library keeps no state between calls, but NULL means out of memory. */
static void *encoder_create(int level, size_t page_size)
{
    (void)level;
    (void)page_size;
    return malloc(1);
}

static int compress_page(void *encoder, const uint8_t *src, size_t n, uint8_t *dst, size_t cap, size_t *out)
{
    size_t written = cap;

    (void)encoder;
    switch (snappy_compress((const char *)src, n, (char *)dst, &written)) {
    case SNAPPY_OK:
        *out = written;
        return VMD_OK;
    case SNAPPY_BUFFER_TOO_SMALL: /* cap < bound(n), looked at before anything is written */
        return VMD_NO_ROOM;
    default:
        return VMD_BROKEN;
    }
}

static void *decoder_create(void)
{
    return malloc(1);
}

static int decompress_page(void *decoder, const uint8_t *src, size_t n, uint8_t *dst, size_t size)
{
    size_t written = 0;

    (void)decoder;
    if (snappy_uncompressed_length((const char *)src, n, &written) != SNAPPY_OK || written != size)
        return VMD_BROKEN;
    return snappy_uncompress((const char *)src, n, (char *)dst, &written) == SNAPPY_OK ? VMD_OK : VMD_BROKEN;
}

const struct vmd_engine vmd_engine_snappy = {
    .name = "snappy",
    .codec = "snappy",
    .min_level = 0,
    .max_level = 0,
    .default_level = 0,
    .version = version,
    .bound = snappy_max_compressed_length,
    .encoder_create = encoder_create,
    .encoder_destroy = free,
    .compress = compress_page,
    .decoder_create = decoder_create,
    .decoder_destroy = free,
    .decompress = decompress_page,
};
#else
#ifndef VMD_WITHOUT_SNAPPY
#define VMD_WITHOUT_SNAPPY "not built"
#endif
const struct vmd_engine vmd_engine_snappy = {
    .name = "snappy", .codec = "snappy", .missing = VMD_WITHOUT_SNAPPY};
#endif
