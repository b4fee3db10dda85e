/* arena_spill.c -- the spill folder: made and locked by the node, removed with its arena, cleared after its death.
 *
 * Only files whose names are digits are ever unlinked, and only a folder that is empty then is removed: a path that
 * somebody overwrote costs nobody a file.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "arena_internal.h"

#define LOOM_SPILL_SUFFIX ".spill"
#define LOOM_SPILL_TRIES 100 /* to empty a folder in which somebody who does not know yet goes on making files */

/* A folder of ours alone, or -1. */
static int folder_open(int at, const char *path) {
    struct stat about;
    int fd = openat(at, path, O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
    if (fd < 0) return -1;
    if (!fstat(fd, &about) && about.st_uid == geteuid() && !(about.st_mode & (S_IRWXG | S_IRWXO))) return fd;
    close(fd);
    errno = EPERM;
    return -1;
}

static int folder_empty(int fd, uint64_t *count) {
    int again = openat(fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *folder = again < 0 ? NULL : fdopendir(again);
    if (!folder) {
        if (again >= 0) close(again);
        return LOOM_E_OS;
    }
    for (struct dirent *entry; (entry = readdir(folder));)
        if (loom_os_is_number(entry->d_name) && !unlinkat(fd, entry->d_name, 0) && count) ++*count;
    closedir(folder);
    return LOOM_OK;
}

static int folder_remove(int at, const char *path, int fd, uint64_t *count) {
    for (int tries = 0; tries < LOOM_SPILL_TRIES; tries++) {
        if (folder_empty(fd, count)) return LOOM_E_OS;
        if (!unlinkat(at, path, AT_REMOVEDIR) || errno == ENOENT) return LOOM_OK;
        if (errno != ENOTEMPTY && errno != EEXIST) return LOOM_E_OS;
    }
    return LOOM_E_OS;
}

/* Whether the file system can reserve room. A full one can. */
static int reserve_try(int fd) {
    int file = openat(fd, "0", O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (file < 0) return errno == ENOSPC || errno == EDQUOT ? LOOM_OK : LOOM_E_OS;
    int failed = fallocate(file, 0, 0, (off_t)LOOM_PAGE) ? errno : 0;
    close(file);
    unlinkat(fd, "0", 0);
    errno = failed;
    return !failed || failed == ENOSPC || failed == EDQUOT ? LOOM_OK : LOOM_E_OS;
}

/* Lock a folder just made. NOT_FOUND: whoever cleared dead arenas away took it for one before it was locked. */
static int folder_lock(loom_arena *arena) {
    arena->spill_fd = folder_open(AT_FDCWD, arena->spill);
    if (arena->spill_fd < 0) return errno == ENOENT ? LOOM_E_NOT_FOUND : LOOM_E_OS;
    int failed;
    do failed = flock(arena->spill_fd, LOCK_EX);
    while (failed && errno == EINTR);
    if (failed) return LOOM_E_OS;
    struct stat ours, there;
    if (fstat(arena->spill_fd, &ours)) return LOOM_E_OS;
    if (!stat(arena->spill, &there) && ours.st_ino == there.st_ino && ours.st_dev == there.st_dev) return LOOM_OK;
    close(arena->spill_fd);
    arena->spill_fd = -1;
    return LOOM_E_NOT_FOUND;
}

int loom_spill_make(loom_arena *arena, const char *folder) {
    if (!folder || folder[0] != '/') return LOOM_E_USAGE;
    size_t length = strnlen(folder, LOOM_SPILL_SIZE) + strlen(arena->name) + sizeof "/" LOOM_SPILL_SUFFIX;
    if (length > LOOM_SPILL_SIZE) return LOOM_E_USAGE;
    snprintf(arena->spill, sizeof arena->spill, "%s/%s" LOOM_SPILL_SUFFIX, folder, arena->name);
    for (int tries = 0; tries < LOOM_SPILL_TRIES; tries++) {
        if (mkdir(arena->spill, 0700)) return errno == EEXIST ? LOOM_E_EXISTS : LOOM_E_OS;
        int code = folder_lock(arena);
        if (code == LOOM_E_NOT_FOUND) continue;
        if (!code) code = reserve_try(arena->spill_fd);
        LOOM_STEP(CREATE_FOLDER);
        if (code) {
            int failed = errno;
            rmdir(arena->spill);
            errno = failed;
        }
        return code;
    }
    return LOOM_E_OS;
}

bool loom_spill_ok(const char *spill, const char *name) {
    if (!memchr(spill, '\0', LOOM_SPILL_SIZE)) return false;
    char tail[LOOM_NAME_MAX + 16];
    snprintf(tail, sizeof tail, "/%s" LOOM_SPILL_SUFFIX, name);
    size_t length = strlen(spill), end = strlen(tail);
    return length == 0 || (spill[0] == '/' && length > end && !strcmp(spill + length - end, tail));
}

int loom_spill_remove(const char *spill, uint64_t *count) {
    int fd = folder_open(AT_FDCWD, spill);
    if (fd < 0) return errno == ENOENT ? LOOM_OK : LOOM_E_OS;
    int code = folder_remove(AT_FDCWD, spill, fd, count), failed = errno;
    close(fd);
    errno = failed;
    return code;
}

static bool is_spill(char *name) {
    size_t length = strlen(name), suffix = strlen(LOOM_SPILL_SUFFIX);
    if (length <= suffix || strcmp(name + length - suffix, LOOM_SPILL_SUFFIX)) return false;
    char arena[256];
    snprintf(arena, sizeof arena, "%.*s", (int)(length - suffix), name);
    return loom_os_name_ok(arena);
}

int loom_arena_clear_spill(const char *folder, uint64_t *count) {
    if (count) *count = 0;
    DIR *spills = opendir(folder);
    if (!spills) return LOOM_E_OS;
    for (struct dirent *entry; (entry = readdir(spills));) {
        int fd = is_spill(entry->d_name) ? folder_open(dirfd(spills), entry->d_name) : -1;
        if (fd < 0) continue;
        if (!flock(fd, LOCK_EX | LOCK_NB) && !folder_remove(dirfd(spills), entry->d_name, fd, NULL) && count) ++*count;
        close(fd);
    }
    closedir(spills);
    return LOOM_OK;
}
