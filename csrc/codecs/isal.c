/* zlib streams by ISA-L, one stateless call per page. */
#define _GNU_SOURCE
#include "codecs/engine.h"
#include "incompressible.h"

#ifdef VMD_HAVE_ISAL
#include <isa-l.h>
#include <stdbool.h>
#include <stdlib.h>
#include <sys/mman.h>

#define TEXT_(x) #x
#define TEXT(x) TEXT_(x)

struct encoder {
    struct isal_zstream *stream;
    uint32_t level;
    uint32_t level_size;
    uint8_t *level_buf;
    struct isal_hufftables *tables; /* of level 0 when it is trained, else NULL: those of the library */
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

/* ISA-L 2.30.0 and 2.31.0 let the output depend on the address of the isal_zstream. Where levels 1 and 2
 * enter the third byte of a page into the hash table (isal_deflate_icf_body_hash_hist_01, _02 and _04, at
 * .write_first_byte), the register that is hashed holds that address and not the data: the entry goes into
 * the bucket that the CRC-32C of the address's bits 16 to 47 names. If the page uses that bucket, a match is
 * lost or found: of 399 pages at 1999 addresses, 32 of 797,601 results differed. What becomes of a page must
 * not depend on the thread or process, so the isal_zstream is put where that bucket is always the same. */
enum { BUCKET = 0x5555, BUCKETS = 1 << 15, SLOT_SHIFT = 16, TURNS = 4096, MAX_SLOTS = TURNS * BUCKETS };

static bool slot_suits(uintptr_t slot)
{
#ifdef __x86_64__
    uint32_t hashed = (uint32_t)slot;

    return (crc32_iscsi((unsigned char *)&hashed, sizeof hashed, 0) & (BUCKETS - 1)) == BUCKET;
#else
    (void)slot;
    return true;
#endif
}

static void *map_stream(uintptr_t slot)
{
    return mmap((void *)(slot << SLOT_SHIFT), sizeof(struct isal_zstream), PROT_READ | PROT_WRITE,
                MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
}

/* The low 15 bits of the CRC (no hash table is larger) take each value once on the 2^15 slots of 64 KiB in an
 * aligned 2 GiB. So going down from where the kernel would map, every 2 GiB have one slot that suits, found
 * in 0.4 ms. Encoders begin at windows of 2 GiB that their own addresses scatter: if all began at the top, each
 * would pass the slots of all before it, and 64 encoders would take 1 s. */
static void *stream_create(const struct encoder *owner)
{
    uintptr_t turn = (((uintptr_t)owner >> 4) * 0x9E3779B1u >> 8) % TURNS;
    void *at = map_stream(0);
    uintptr_t slot = ((uintptr_t)at >> SLOT_SHIFT) - turn * BUCKETS;

    for (int i = 0; i < MAX_SLOTS && at != MAP_FAILED; i++, slot--) {
        if (!slot_suits(slot))
            continue;
        munmap(at, sizeof(struct isal_zstream));
        at = map_stream(slot);
        if (at != MAP_FAILED && slot_suits((uintptr_t)at >> SLOT_SHIFT))
            return at;
    }
    if (at != MAP_FAILED)
        munmap(at, sizeof(struct isal_zstream));
    return NULL;
}

static void encoder_destroy(void *encoder)
{
    struct encoder *e = encoder;

    if (!e)
        return;
    if (e->stream)
        munmap(e->stream, sizeof *e->stream);
    free(e->level_buf);
    free(e->tables);
    free(e);
}

static void *encoder_create(int level, size_t page_size)
{
    static const uint32_t level_sizes[] = {
        ISAL_DEF_LVL0_DEFAULT,
        ISAL_DEF_LVL1_DEFAULT,
        ISAL_DEF_LVL2_DEFAULT,
        ISAL_DEF_LVL3_DEFAULT,
    };
    struct encoder *e = calloc(1, sizeof *e);

    (void)page_size;
    if (!e)
        return NULL;
    e->level = (uint32_t)level;
    e->level_size = level_sizes[level];
    e->stream = stream_create(e);
    e->level_buf = e->level_size ? calloc(1, e->level_size) : NULL;
    if (!e->stream || (e->level_size && !e->level_buf)) {
        encoder_destroy(e);
        return NULL;
    }
    return e;
}

/* Level 0 has one set of Huffman codes for all pages, and writes the header that describes them into each.
 * Codes fitted to 256 pages of the guest make its pages 5.5 % smaller (ratio 0.5053 instead of 0.5346), the
 * packing 2 % slower; fitted to 1024 pages they do no better. Level 1 makes codes for each page: 0.4523, in
 * more than twice the time. Fitted to fewer than 16 pages they can be worse than the library's own. Pages
 * that are stored plain anyway have no say: 0.3 %. Every byte gets a code, in the sample or not. */
enum { ENOUGH_PAGES = 16 };

static size_t count_symbols(const uint8_t *pages, size_t page_count, size_t page_size,
                            struct isal_huff_histogram *histogram)
{
    size_t counted = 0;

    for (size_t i = 0; i < page_count; i++, pages += page_size) {
        if (vmd_is_incompressible(pages, page_size))
            continue;
        isal_update_histogram((uint8_t *)pages, (int)page_size, histogram);
        counted++;
    }
    return counted;
}

static int train(void *encoder, const uint8_t *pages, size_t page_count, size_t page_size)
{
    struct encoder *e = encoder;
    struct isal_huff_histogram *histogram = calloc(1, sizeof *histogram);
    struct isal_hufftables *tables = calloc(1, sizeof *tables);
    int status = histogram && tables ? VMD_OK : VMD_NO_MEMORY;

    if (status == VMD_OK && count_symbols(pages, page_count, page_size, histogram) >= ENOUGH_PAGES &&
        isal_create_hufftables(tables, histogram) == 0) {
        struct isal_hufftables *before = e->tables;
        e->tables = tables;
        tables = before;
    }
    free(histogram);
    free(tables);
    return status;
}

static int compress_page(void *encoder, const uint8_t *src, size_t n, uint8_t *dst, size_t cap, size_t *out)
{
    struct encoder *e = encoder;
    struct isal_zstream *s = e->stream;
    int r;

    isal_deflate_stateless_init(s);
    if (e->tables)
        s->hufftables = e->tables;
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
    if (isal_inflate_stateless(s) != ISAL_DECOMP_OK || s->block_state != ISAL_BLOCK_FINISH)
        return VMD_BROKEN;
    return s->total_out == size ? VMD_OK : VMD_BROKEN;
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
    .trained_level = 0,
    .train = train,
    .slow_on_noise = 1,
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
