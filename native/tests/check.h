/* check.h -- what the native tests share: assertions that name the line, a seeded generator, a clean /dev/shm. */
#ifndef LOOM_TESTS_CHECK_H
#define LOOM_TESTS_CHECK_H

#include <dirent.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define CHECK(condition)                                                                                              \
    do {                                                                                                              \
        if (!(condition)) {                                                                                           \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition);                                           \
            abort();                                                                                                  \
        }                                                                                                             \
    } while (0)

#define CHECK_CODE(call, expected)                                                                                    \
    do {                                                                                                              \
        int code_ = (call);                                                                                           \
        if (code_ != (expected)) {                                                                                    \
            fprintf(stderr, "%s:%d: %s: expected %d, got %d (%s)\n", __FILE__, __LINE__, #call, (expected), code_,    \
                    loom_arena_text(code_));                                                                          \
            abort();                                                                                                  \
        }                                                                                                             \
    } while (0)

static inline uint64_t roll(uint64_t *state) { /* splitmix64 */
    uint64_t value = *state += UINT64_C(0x9e3779b97f4a7c15);
    value = (value ^ value >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    value = (value ^ value >> 27) * UINT64_C(0x94d049bb133111eb);
    return value ^ value >> 31;
}

static inline int files_in(const char *path, const char *prefix) {
    int count = 0;
    DIR *folder = opendir(path);
    CHECK(folder);
    for (struct dirent *entry; (entry = readdir(folder));)
        count += entry->d_name[0] != '.' && !strncmp(entry->d_name, prefix, strlen(prefix));
    closedir(folder);
    return count;
}

static inline int files_left(const char *prefix) { return files_in("/dev/shm", prefix); }

/* A folder to spill to; remove it with rmdir, which fails when something was left in it. */
static inline char *spill_folder(void) {
    static char path[64];
    snprintf(path, sizeof path, "/tmp/loom-spill-XXXXXX");
    CHECK(mkdtemp(path));
    return path;
}

#endif
