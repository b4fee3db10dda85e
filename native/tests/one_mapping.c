/* one_mapping.c -- lets a race detector see through shared memory.
 *
 * ThreadSanitizer compares addresses, and two handles of one process map the same file at two of them. Compiled with
 * -Dmmap=one_mapping_mmap -Dmunmap=one_mapping_munmap the core maps each part of a file once, and writable;
 * a part of what is mapped already is found there.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#undef munmap /* the real one: the detector forgets what it knew of addresses that something else gets next */
int munmap(void *at, size_t size);
int one_mapping_munmap(void *at, size_t size);

struct mapping {
    dev_t device;
    ino_t inode;
    off_t offset;
    size_t size;
    unsigned char *at;
    unsigned users;
};

static struct mapping mappings[4096];
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;

static void *map_now(void *at, size_t size, int protection, int flags, int fd, off_t offset) {
    return (void *)syscall(SYS_mmap, at, size, protection, flags, fd, offset);
}

void *mmap(void *at, size_t size, int protection, int flags, int fd, off_t offset) {
    if (fd < 0) return map_now(at, size, protection, flags, fd, offset);
    struct stat about;
    if (fstat(fd, &about)) return MAP_FAILED;
    pthread_mutex_lock(&mutex);
    struct mapping *spare = NULL, *found = NULL;
    for (size_t i = 0; i < sizeof mappings / sizeof *mappings && !found; i++) {
        struct mapping *mapping = &mappings[i];
        if (!mapping->users)
            spare = spare ? spare : mapping;
        else if (mapping->device == about.st_dev && mapping->inode == about.st_ino && mapping->offset <= offset &&
                 offset + (off_t)size <= mapping->offset + (off_t)mapping->size)
            found = mapping;
    }
    if (!found && spare) {
        char path[32];
        int again = fd;
        if (!(protection & PROT_WRITE)) { /* the owner's, or a read-only view's, whoever comes first: writable */
            __builtin_sprintf(path, "/proc/self/fd/%d", fd);
            again = (int)syscall(SYS_openat, -100, path, 2, 0);
        }
        void *mapped = map_now(at, size, PROT_READ | PROT_WRITE, flags, again, offset);
        if (again != fd) close(again);
        if (mapped != MAP_FAILED) {
            *spare = (struct mapping){about.st_dev, about.st_ino, offset, size, mapped, 0};
            found = spare;
        }
    }
    void *result = MAP_FAILED;
    if (found) {
        found->users++;
        result = found->at + (offset - found->offset);
    }
    pthread_mutex_unlock(&mutex);
    return result;
}

int one_mapping_munmap(void *at, size_t size) {
    unsigned char *mapped = at;
    pthread_mutex_lock(&mutex);
    for (size_t i = 0; i < sizeof mappings / sizeof *mappings; i++) {
        struct mapping *mapping = &mappings[i];
        if (!mapping->users || mapped < mapping->at || mapped >= mapping->at + mapping->size) continue;
        mapped = --mapping->users ? NULL : mapping->at;
        size = mapping->size;
        break;
    }
    /* Inside the mutex: the address must not be mapped again before it is free. */
    int result = mapped ? munmap(mapped, size) : 0;
    pthread_mutex_unlock(&mutex);
    return result;
}
