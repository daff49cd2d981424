/* zlib streams by ISA-L, one stateless call per page. */
#include "codec.h"

#ifdef VMD_HAVE_ISAL
#include <isa-l.h>
#include <stdlib.h>

#define TEXT_(x) #x
#define TEXT(x) TEXT_(x)

struct encoder {
    struct isal_zstream stream;
    uint32_t level;
    uint32_t level_size;
    uint8_t *level_buf;
};

static const char *version(void)
{
    return TEXT(ISAL_MAJOR_VERSION) "." TEXT(ISAL_MINOR_VERSION) "." TEXT(ISAL_PATCH_VERSION);
}

/* A page that does not shrink becomes stored blocks of at most 65535 bytes with 5 bytes of header each,
 * between 2 bytes of zlib header and 4 of Adler-32. */
static size_t bound(size_t size)
{
    return size + 5 * (size / 65535 + 1) + 6;
}

static void encoder_destroy(void *encoder)
{
    struct encoder *e = encoder;

    if (e)
        free(e->level_buf);
    free(e);
}

static void *encoder_create(int level, size_t page_size)
{
    static const uint32_t level_sizes[] = {ISAL_DEF_LVL0_DEFAULT, ISAL_DEF_LVL1_DEFAULT, ISAL_DEF_LVL2_DEFAULT,
                                           ISAL_DEF_LVL3_DEFAULT};
    struct encoder *e = calloc(1, sizeof *e);

    (void)page_size;
    if (!e)
        return NULL;
    e->level = (uint32_t)level;
    e->level_size = level_sizes[level];
    if (e->level_size && !(e->level_buf = calloc(1, e->level_size))) {
        encoder_destroy(e);
        return NULL;
    }
    return e;
}

static int compress_page(void *encoder, const uint8_t *src, size_t n, uint8_t *dst, size_t cap, size_t *out)
{
    struct encoder *e = encoder;
    struct isal_zstream *s = &e->stream;
    int r;

    isal_deflate_stateless_init(s);
    s->level = e->level;
    s->level_buf = e->level_buf;
    s->level_buf_size = e->level_size;
    s->gzip_flag = IGZIP_ZLIB;
    s->end_of_stream = 1;
    s->flush = NO_FLUSH;
    s->next_in = (uint8_t *)src;
    s->avail_in = (uint32_t)n;
    s->next_out = dst;
    s->avail_out = (uint32_t)cap;
    r = isal_deflate_stateless(s);
    if (r == STATELESS_OVERFLOW)
        return VMD_NO_ROOM;
    if (r != COMP_OK)
        return VMD_BROKEN;
    *out = s->total_out;
    return VMD_OK;
}

static void *decoder_create(void)
{
    return calloc(1, sizeof(struct inflate_state));
}

static int decompress_page(void *decoder, const uint8_t *src, size_t n, uint8_t *dst, size_t size)
{
    struct inflate_state *s = decoder;

    isal_inflate_init(s);
    s->crc_flag = ISAL_ZLIB;
    s->next_in = (uint8_t *)src;
    s->avail_in = (uint32_t)n;
    s->next_out = dst;
    s->avail_out = (uint32_t)size;
    if (isal_inflate_stateless(s) != ISAL_DECOMP_OK || s->block_state != ISAL_BLOCK_FINISH || s->total_out != size)
        return VMD_BROKEN;
    return VMD_OK;
}

const struct vmd_engine vmd_engine_isal = {
    .name = "isal",
    .codec = "zlib",
    .min_level = 0,
    .max_level = 3,
    .default_level = 1,
    .version = version,
    .bound = bound,
    .encoder_create = encoder_create,
    .encoder_destroy = encoder_destroy,
    .compress = compress_page,
    .decoder_create = decoder_create,
    .decoder_destroy = free,
    .decompress = decompress_page,
};
#else
#ifndef VMD_WITHOUT_ISAL
#define VMD_WITHOUT_ISAL "not built"
#endif
const struct vmd_engine vmd_engine_isal = {.name = "isal", .codec = "zlib", .missing = VMD_WITHOUT_ISAL};
#endif
