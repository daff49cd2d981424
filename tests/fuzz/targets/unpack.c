/* Pages out of a dump: descriptors that point anywhere and streams that are none, through every engine.
 *
 * Input: page size, pages - 1, then per page: where (8 bytes), how long (4), compressed or not (1); the rest is
 * the data. What must hold: nothing outside data and out is touched, a result that is said to be good does not
 * depend on what was in `out`, and two engines of one codec that both accept a stream give the same page. */
#include "input.h"
#include "unpack.h"

enum { MAX_PAGES = 8, ENGINES = 6 };

static const uint32_t page_sizes[] = {4096, 8192, 16384, 65536, 1};

static int unpack(const struct vmd_engine *engine, size_t page_size, const struct guarded *data,
                  const uint64_t *offsets, const uint32_t *sizes, const uint8_t *compressed, size_t pages,
                  const struct guarded *out, uint8_t filler)
{
    struct vmd_unpacker unpacker;
    size_t bad = 0;

    memset(out->bytes, filler, out->size);
    PROMISE(vmd_unpacker_open(&unpacker, engine, page_size) == VMD_OK);
    int status = vmd_unpack(&unpacker, data->bytes, data->size, offsets, sizes, compressed, pages, out->bytes, &bad);
    vmd_unpacker_close(&unpacker);
    PROMISE(status == VMD_OK || status == VMD_OUTSIDE || status == VMD_BAD_SIZE || status == VMD_BROKEN);
    PROMISE(bad < pages);
    return status;
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size)
{
    struct input in = {bytes, size};
    size_t page_size = page_sizes[take_number(&in, 1) % (sizeof page_sizes / sizeof page_sizes[0])];
    size_t pages = take_number(&in, 1) % MAX_PAGES + 1;
    uint64_t offsets[MAX_PAGES];
    uint32_t sizes[MAX_PAGES];
    uint8_t compressed[MAX_PAGES];

    for (size_t i = 0; i < pages; i++) {
        offsets[i] = take_number(&in, 8);
        sizes[i] = (uint32_t)take_number(&in, 4);
        compressed[i] = (uint8_t)take_number(&in, 1) & 1;
    }
    struct guarded data = guarded_alloc(in.size);
    take(&in, data.bytes, data.size);
    struct guarded first = guarded_alloc(pages * page_size), second = guarded_alloc(pages * page_size);
    struct guarded agreed = guarded_alloc(pages * page_size);
    const char *agreed_codec = "";

    for (size_t i = 0; vmd_engines[i]; i++) {
        const struct vmd_engine *engine = vmd_engines[i];
        if (engine->missing)
            continue;
        int status = unpack(engine, page_size, &data, offsets, sizes, compressed, pages, &first, 0);
        PROMISE(unpack(engine, page_size, &data, offsets, sizes, compressed, pages, &second, 0xff) == status);
        if (status != VMD_OK)
            continue;
        PROMISE(memcmp(first.bytes, second.bytes, first.size) == 0);
        if (strcmp(engine->codec, agreed_codec) == 0)
            PROMISE(memcmp(first.bytes, agreed.bytes, first.size) == 0);
        agreed_codec = engine->codec;
        memcpy(agreed.bytes, first.bytes, first.size);
    }
    guarded_free(&data);
    guarded_free(&first);
    guarded_free(&second);
    guarded_free(&agreed);
    return 0;
}
