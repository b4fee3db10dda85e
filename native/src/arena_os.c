/* arena_os.c -- what the arena asks of Linux: files under /dev/shm, mappings, /proc, clocks. */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <time.h>
#include <unistd.h>

#include "arena_internal.h"

#define LOOM_RESERVE_STEP (UINT64_C(4) << 20) /* a signal undoes one fallocate at most, so progress is kept */

bool loom_os_name_ok(const char *name) {
    size_t length = name ? strnlen(name, LOOM_NAME_MAX + 1) : 0;
    if (length == 0 || length > LOOM_NAME_MAX) return false;
    return strspn(name, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-") == length;
}

bool loom_os_is_number(const char *name) { return *name && strspn(name, "0123456789") == strlen(name); }

void loom_os_path(char *path, size_t size, const char *name, uint64_t sequence) {
    if (sequence)
        snprintf(path, size, LOOM_FOLDER "/%s.%llu", name, (unsigned long long)sequence);
    else
        snprintf(path, size, LOOM_FOLDER "/%s.ctl", name);
}

int loom_os_reserve(int fd, uint64_t offset, uint64_t size) {
    while (size) {
        uint64_t step = size < LOOM_RESERVE_STEP ? size : LOOM_RESERVE_STEP;
        int failed;
        do failed = posix_fallocate(fd, (off_t)offset, (off_t)step);
        while (failed == EINTR);
        if (failed) {
            errno = failed;
            bool full = failed == ENOSPC || failed == EDQUOT || failed == EFBIG || failed == ENOMEM;
            return full ? LOOM_E_FULL : LOOM_E_OS;
        }
        offset += step;
        size -= step;
    }
    return LOOM_OK;
}

int loom_os_check_file(int fd, uint64_t *size) {
    struct stat about;
    if (fstat(fd, &about)) return LOOM_E_OS;
    if (!S_ISREG(about.st_mode)) return LOOM_E_CORRUPT;
    if (about.st_uid != geteuid() || (about.st_mode & (S_IRWXG | S_IRWXO))) return LOOM_E_DENIED;
    *size = (uint64_t)about.st_size;
    return LOOM_OK;
}

int loom_os_map(int fd, uint64_t offset, uint64_t size, bool writable, void **out) {
    void *at = mmap(NULL, size, writable ? PROT_READ | PROT_WRITE : PROT_READ, MAP_SHARED, fd, (off_t)offset);
    if (at == MAP_FAILED) return errno == ENOMEM ? LOOM_E_MEMORY : LOOM_E_OS;
    *out = at;
    return LOOM_OK;
}

static ssize_t read_file(const char *path, char *into, size_t size) {
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return -1;
    ssize_t got;
    do got = read(fd, into, size - 1);
    while (got < 0 && errno == EINTR);
    int failed = errno;
    close(fd);
    errno = failed;
    if (got >= 0) into[got] = '\0';
    return got;
}

int loom_os_boot_id(uint64_t id[2]) {
    char text[64];
    if (read_file("/proc/sys/kernel/random/boot_id", text, sizeof text) < 0) return LOOM_E_OS;
    unsigned char bytes[16] = {0};
    size_t digits = 0;
    for (const char *at = text; *at && digits < 32; at++) {
        int value = *at >= '0' && *at <= '9' ? *at - '0' : *at >= 'a' && *at <= 'f' ? *at - 'a' + 10 : -1;
        if (value < 0) continue;
        bytes[digits / 2] |= (unsigned char)(digits % 2 ? value : value << 4);
        digits++;
    }
    memcpy(id, bytes, sizeof bytes);
    return LOOM_OK;
}

int loom_process_start_time(uint32_t pid, uint64_t *ticks) {
    char path[32], text[1024];
    snprintf(path, sizeof path, "/proc/%u/stat", pid);
    if (read_file(path, text, sizeof text) < 0) return errno == ENOENT || errno == ESRCH ? LOOM_E_NOT_FOUND : LOOM_E_OS;
    const char *at = strrchr(text, ')'); /* field 2 is the program's name and may contain anything, ')' too */
    if (!at || at[1] != ' ') return LOOM_E_NOT_FOUND;
    at += 2;
    if (*at == 'Z' || *at == 'X' || *at == 'x') return LOOM_E_NOT_FOUND;
    for (int field = 3; field < 22; field++) {
        at = strchr(at, ' ');
        if (!at) return LOOM_E_NOT_FOUND;
        at++;
    }
    *ticks = strtoull(at, NULL, 10);
    return LOOM_OK;
}

uint64_t loom_os_page(void) {
    long page = sysconf(_SC_PAGESIZE);
    return page > (long)LOOM_PAGE ? (uint64_t)page : LOOM_PAGE;
}

uint64_t loom_os_now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * UINT64_C(1000000000) + (uint64_t)now.tv_nsec;
}

uint64_t loom_os_about_now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
    return (uint64_t)now.tv_sec * UINT64_C(1000000000) + (uint64_t)now.tv_nsec;
}

uint64_t loom_os_free_bytes(const char *path) {
    struct statvfs about;
    return statvfs(path, &about) ? 0 : (uint64_t)about.f_bavail * about.f_frsize;
}

int loom_os_alive_page(_Atomic uint64_t **out) {
    void *page = mmap(NULL, loom_os_page(), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (page == MAP_FAILED) return LOOM_E_MEMORY;
    if (madvise(page, loom_os_page(), MADV_WIPEONFORK)) {
        munmap(page, loom_os_page());
        return LOOM_E_OS;
    }
    *out = page;
    atomic_store_explicit(*out, 1, memory_order_relaxed);
    return LOOM_OK;
}

void loom_os_alive_free(_Atomic uint64_t *page) {
    if (page) munmap((void *)page, loom_os_page());
}
