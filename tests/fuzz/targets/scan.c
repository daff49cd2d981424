/* A window of pages gathered from the runs of a file, against the same put together byte by byte.
 *
 * Input: page size, pages - 1, runs, first page, hashes wanted (1 byte
 * each), then per run: gap before it (2 bytes), length (2), where in the file (2); the rest is the file. */
#include "input.h"
#include "scan.h"

#include <sys/syscall.h>

enum { MAX_RUNS = 8, MAX_PAGES = 8 };

static const uint32_t page_sizes[] = {64, 128, 512, 4096};

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size)
{
    static int file = -1;
    struct input in = {bytes, size};
    size_t page_size = page_sizes[take_number(&in, 1) % 4], pages = take_number(&in, 1) % MAX_PAGES + 1;
    size_t run_count = take_number(&in, 1) % (MAX_RUNS + 1), first = take_number(&in, 1) % pages;
    int hashing = (int)take_number(&in, 1) & 1, error = -1;
    uint64_t key[VMD_HASH_KEY_WORDS], known[MAX_PAGES] = {0}, hashes[MAX_PAGES] = {0}, hash;
    struct vmd_run runs[MAX_RUNS];
    int64_t position = 0;
    uint8_t kinds[MAX_PAGES];
    const uint8_t *found;

    if (file < 0)
        file = (int)syscall(SYS_memfd_create, "scan", 0);
    for (size_t i = 0; i < run_count; i++) {
        runs[i].begin = position + (int64_t)take_number(&in, 2) % 4096;
        runs[i].end = position = runs[i].begin + (int64_t)take_number(&in, 2) % 8192;
        runs[i].fd = file;
        runs[i].offset = (int64_t)take_number(&in, 2);
    }
    PROMISE(ftruncate(file, 0) == 0);
    PROMISE(pwrite(file, in.data, in.size, 0) == (ssize_t)in.size);
    for (size_t i = 0; i < VMD_HASH_KEY_WORDS; i++)
        key[i] = (i + 1) * 0x9E3779B97F4A7C15u;

    size_t count = pages - first, wanted = count * page_size;
    struct guarded window = guarded_alloc(wanted), expected = guarded_alloc(wanted);
    int readable = 1;
    memset(expected.bytes, 0, wanted);
    for (size_t i = 0; i < run_count; i++)
        for (int64_t at = runs[i].begin; at < runs[i].end; at++) {
            int64_t place = at - (int64_t)(first * page_size), source = runs[i].offset + at - runs[i].begin;
            if (place < 0 || place >= (int64_t)wanted)
                continue;
            readable &= source < (int64_t)in.size;
            if (source < (int64_t)in.size)
                expected.bytes[place] = in.data[source];
        }

    struct vmd_scan scan = {.runs = runs,
                            .run_count = run_count,
                            .page_size = page_size,
                            .page_count = pages,
                            .zero = vmd_zero_kernel(vmd_zero_default()),
                            .key = hashing ? key : NULL,
                            .known = hashing ? known : NULL,
                            .hashes = hashes};
    known[first] = 1;
    int status = vmd_scan_window(&scan, first, count, window.bytes, &found, kinds, &error);
    PROMISE(status == (readable ? VMD_OK : VMD_ERRNO));
    if (status == VMD_ERRNO)
        PROMISE(error == 0); /* the file ended */
    for (size_t i = 0; status == VMD_OK && i < count; i++) {
        const uint8_t *page = expected.bytes + i * page_size;
        int zero = scan.zero(page, page_size);
        PROMISE(memcmp(found + i * page_size, page, page_size) == 0);
        PROMISE(zero == (kinds[i] == VMD_PAGE_ZERO || kinds[i] == VMD_PAGE_CLEARED));
        PROMISE((kinds[i] == VMD_PAGE_CLEARED) == (hashing && zero && i == 0));
        if (hashing && !zero) {
            vmd_hash_pages(page, page_size, 1, key, &hash);
            PROMISE(hashes[first + i] == hash);
        }
    }
    guarded_free(&window);
    guarded_free(&expected);
    return 0;
}
