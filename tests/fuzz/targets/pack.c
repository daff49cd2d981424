/* Any pages through every engine and back: nothing leaves the buffers, no page grows, and each comes back.
 *
 * Input: page size, level, pages - 1, train or not; the rest are the pages, repeated until they are enough. */
#include "input.h"
#include "pack.h"
#include "unpack.h"

enum { MAX_PAGES = 4 };

static const uint32_t page_sizes[] = {4096, 8192, 65536, 64, 1};

static void round_trip(const struct vmd_engine *engine, int level, int train, size_t page_size, size_t pages,
                       const struct guarded *memory)
{
    struct vmd_packer packer;
    struct vmd_unpacker unpacker;
    uint32_t sizes[MAX_PAGES];
    uint64_t offsets[MAX_PAGES];
    uint8_t compressed[MAX_PAGES];
    size_t used = 0, bad = 0, end = 0;
    int error = 0;
    struct vmd_scan scan = {.bytes = memory->bytes,
                            .page_size = page_size,
                            .page_count = pages,
                            .zero = vmd_zero_kernel(vmd_zero_default())};

    PROMISE(vmd_packer_open(&packer, engine, level, page_size) == VMD_OK);
    if (train && engine->train && engine->trained_level == level)
        PROMISE(vmd_packer_train(&packer, memory->bytes, pages) == VMD_OK);
    struct guarded packed = guarded_alloc(vmd_pack_bound(&packer, pages));
    PROMISE(vmd_pack(&packer, &scan, packed.bytes, packed.size, sizes, &used, &bad, &error) == VMD_OK);
    PROMISE(used <= pages * page_size);
    for (size_t i = 0; i < pages; i++) {
        PROMISE(sizes[i] <= page_size);
        offsets[i] = end;
        compressed[i] = sizes[i] < page_size;
        end += sizes[i];
    }
    PROMISE(end == used);
    struct guarded kept = guarded_alloc(used), out = guarded_alloc(pages * page_size);
    memcpy(kept.bytes, packed.bytes, used);
    PROMISE(vmd_unpacker_open(&unpacker, engine, page_size) == VMD_OK);
    PROMISE(vmd_unpack(&unpacker, kept.bytes, used, offsets, sizes, compressed, pages, out.bytes, &bad) == VMD_OK);
    PROMISE(memcmp(out.bytes, memory->bytes, out.size) == 0);
    vmd_unpacker_close(&unpacker);
    vmd_packer_close(&packer);
    guarded_free(&packed);
    guarded_free(&kept);
    guarded_free(&out);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size)
{
    struct input in = {bytes, size};
    size_t page_size = page_sizes[take_number(&in, 1) % (sizeof page_sizes / sizeof page_sizes[0])];
    int level = (int)take_number(&in, 1);
    size_t pages = take_number(&in, 1) % MAX_PAGES + 1;
    int train = (int)take_number(&in, 1) & 1;
    struct guarded memory = guarded_alloc(pages * page_size);

    memset(memory.bytes, 0, memory.size);
    for (size_t at = 0; in.size && at < memory.size; at++)
        memory.bytes[at] = in.data[at % in.size];
    for (size_t i = 0; vmd_engines[i]; i++) {
        const struct vmd_engine *engine = vmd_engines[i];
        if (engine->missing)
            continue;
        /* zstd's upper levels take a second for a page. */
        int levels = (engine->max_level < 9 ? engine->max_level : 9) - engine->min_level + 1;
        round_trip(engine, engine->min_level + level % levels, train, page_size, pages, &memory);
    }
    guarded_free(&memory);
    return 0;
}
