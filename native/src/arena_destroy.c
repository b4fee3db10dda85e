/* arena_destroy.c -- removing what a dead arena left, by its name alone. */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "arena_internal.h"

/* The spill folder that the control file names; false when there is none. */
static bool spill_of(const char *name, char spill[LOOM_SPILL_SIZE]) {
    char path[LOOM_PATH_MAX];
    loom_os_path(path, sizeof path, name, 0);
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    if (fd < 0) return false;
    struct loom_control header;
    uint64_t size;
    bool read = !loom_os_check_file(fd, &size) && pread(fd, &header, sizeof header, 0) == (ssize_t)sizeof header &&
                atomic_load_explicit(&header.magic, memory_order_relaxed) == LOOM_CONTROL_MAGIC &&
                header.version == LOOM_LAYOUT_VERSION;
    close(fd);
    if (!read || !header.spill[0] || !loom_spill_ok(header.spill, name)) return false;
    memcpy(spill, header.spill, LOOM_SPILL_SIZE);
    return true;
}

/* Another user's file stays, even where we could unlink it. */
static bool ours(int folder, const char *file) {
    struct stat about;
    if (fstatat(folder, file, &about, AT_SYMLINK_NOFOLLOW)) return false;
    if (about.st_uid == geteuid()) return true;
    errno = EPERM;
    return false;
}

int loom_arena_destroy_files(const char *name, uint64_t *count) {
    if (count) *count = 0;
    if (!loom_os_name_ok(name)) return LOOM_E_USAGE;
    DIR *folder = opendir(LOOM_FOLDER);
    if (!folder) return LOOM_E_OS;
    char spill[LOOM_SPILL_SIZE];
    size_t length = strlen(name);
    int failed = 0;
    if (spill_of(name, spill) && loom_spill_remove(spill, count)) failed = errno;
    LOOM_STEP(DESTROY_SPILL);
    /* The control file goes last: as long as it is there, a second call finds what a killed first one left. */
    for (int pass = 0; pass < 2; pass++) {
        rewinddir(folder);
        for (struct dirent *entry; (entry = readdir(folder));) {
            if (strncmp(entry->d_name, name, length) || entry->d_name[length] != '.') continue;
            const char *tail = entry->d_name + length + 1;
            if (pass == 0 ? !loom_os_is_number(tail) : strcmp(tail, "ctl")) continue;
            if (ours(dirfd(folder), entry->d_name) && unlinkat(dirfd(folder), entry->d_name, 0) == 0) {
                if (count) ++*count;
            } else if (errno != ENOENT) {
                failed = errno;
            }
        }
        if (pass == 0) LOOM_STEP(DESTROY_SEGMENTS);
    }
    LOOM_STEP(DESTROY_CONTROL);
    closedir(folder);
    errno = failed;
    return failed ? LOOM_E_OS : LOOM_OK;
}
