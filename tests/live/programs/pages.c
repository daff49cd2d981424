/* In a guest: `pages hold` has memory of each kind that a program can have; `pages write` rewrites pages for ever.
 *
 * What `write` keeps, whenever the guest is stopped:
 * - Each writer of numbers goes through its pages in order, and writes the number of its round to the first and
 *   then to the last word of each. So along the pages the numbers fall by one once at most, and never rise.
 * - The pipe holds pages with ascending numbers, without a gap: all but the last two of CAPACITY.
 * Writer 0 has the memory of io_uring's submission queues, which is the kernel's (no mapping, in no list), as a
 * pipe's pages are; writer 1 has locked anonymous memory.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/io_uring.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { PAGE = 4096, WORDS = PAGE / 8, QUEUES = 4, ENTRIES = 32768, QUEUE = ENTRIES * 64, CAPACITY = 1024 };
static const uint64_t NUMBERS = 0x73726562a5c3f117, RECORD = 0x64726f63a5c3f117;

static void demand(int holds, const char *what)
{
    if (!holds) {
        perror(what);
        exit(1);
    }
}

static char *map(size_t size, int flags)
{
    char *found = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | flags, -1, 0);
    demand(found != MAP_FAILED, "mmap");
    return found;
}

static void fill(char *begin, size_t size, uint64_t same)
{
    for (size_t at = 0; at < size; at += 8)
        *(uint64_t *)(begin + at) = same ? same : (uint64_t)(uintptr_t)(begin + at);
}

static void hold(void)
{
    const size_t mib = 1 << 20;
    char *plain = map(12 * mib, 0), *huge = map(14 * mib, 0), *same = map(2 * mib, 0), *out = map(4 * mib, 0);
    madvise(plain, 12 * mib, MADV_NOHUGEPAGE);
    fill(plain, 12 * mib, 0);
    madvise(huge, 14 * mib, MADV_HUGEPAGE);
    fill(huge, 14 * mib, 0);
    char *pool = map(8 * mib, MAP_HUGETLB);
    fill(pool, 8 * mib, 0);
    madvise(same, 2 * mib, MADV_NOHUGEPAGE);
    demand(madvise(same, 2 * mib, MADV_MERGEABLE) == 0, "KSM");
    fill(same, 2 * mib, 0x1234567);
    char *locked = map(2 * mib, 0);
    demand(mlock(locked, 2 * mib) == 0, "mlock");
    fill(locked, 2 * mib, 0);
    madvise(out, 4 * mib, MADV_NOHUGEPAGE);
    fill(out, 4 * mib, 0);
    demand(madvise(out, 4 * mib, MADV_PAGEOUT) == 0, "MADV_PAGEOUT");
    for (size_t at = 0; at < 2 * mib; at += PAGE)
        *(volatile char *)(out + at);
    int ends[2];
    demand(pipe(ends) == 0 && fcntl(ends[1], F_SETPIPE_SZ, mib) == (int)mib, "pipe");
    demand(write(ends[1], plain, mib) == (ssize_t)mib, "write");
}

static void write_numbers(uint64_t writer, char *const *areas, size_t count, size_t size)
{
    for (uint64_t round = 1;; round++)
        for (uint64_t page = 0; page < count * size / PAGE; page++) {
            volatile uint64_t *words = (uint64_t *)(areas[page * PAGE / size] + page * PAGE % size);
            if (round == 1) {
                words[2] = page;
                words[1] = writer;
                words[0] = NUMBERS;
            }
            words[3] = round;
            words[WORDS - 1] = round;
        }
}

static void write_queues(void)
{
    char *queues[QUEUES];
    for (int queue = 0; queue < QUEUES; queue++) {
        struct io_uring_params parameters = {0};
        int ring = (int)syscall(__NR_io_uring_setup, ENTRIES, &parameters);
        demand(ring >= 0, "io_uring_setup");
        queues[queue] = mmap(NULL, QUEUE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, ring, IORING_OFF_SQES);
        demand(queues[queue] != MAP_FAILED, "io_uring");
    }
    write_numbers(0, queues, QUEUES, QUEUE);
}

static void write_locked(void)
{
    char *memory = map(QUEUES * QUEUE, 0);
    demand(mlock(memory, QUEUES * QUEUE) == 0, "mlock");
    write_numbers(1, &memory, 1, QUEUES * QUEUE);
}

static void write_pipe(void)
{
    static uint64_t record[WORDS], other[WORDS];
    int ends[2];
    demand(pipe(ends) == 0 && fcntl(ends[1], F_SETPIPE_SZ, CAPACITY * PAGE) == CAPACITY * PAGE, "pipe");
    for (uint64_t number = 1;; number++) {
        for (int word = 0; word < WORDS; word++)
            record[word] = number;
        record[0] = RECORD;
        if (number > CAPACITY)
            demand(read(ends[0], other, PAGE) == PAGE, "read");
        demand(write(ends[1], record, PAGE) == PAGE, "write");
    }
}

int main(int count, char **words)
{
    if (count == 2 && strcmp(words[1], "hold") == 0) {
        hold();
    } else if (count == 2 && strcmp(words[1], "write") == 0) {
        void (*const writers[])(void) = {write_queues, write_locked, write_pipe};
        for (int writer = 0; writer < 3; writer++)
            if (fork() == 0)
                writers[writer]();
    } else {
        return 2;
    }
    puts("PAGES-READY");
    fflush(stdout);
    for (;;)
        pause();
}
