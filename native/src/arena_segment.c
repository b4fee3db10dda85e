/* arena_segment.c -- segments: making, mapping and removing their files, and this process's maps of them. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "arena_internal.h"

void loom_map_free(struct map *map) {
    if (!map) return;
    if (map->control) munmap(map->control, map->control_size);
    if (map->data) munmap(map->data, map->data_size);
    free(map->local);
    free(map->held);
    free(map->free_ids);
    loom_space_close(&map->space);
    free(map);
}

static struct map *map_new(uint32_t index, uint64_t sequence, uint32_t blocks, uint64_t control_size,
                           uint64_t data_size) {
    struct map *map = calloc(1, sizeof *map);
    if (!map) return NULL;
    map->index = index;
    map->sequence = sequence;
    map->blocks = blocks;
    map->control_size = control_size;
    map->data_size = data_size;
    map->local = calloc(blocks, sizeof *map->local);
    map->held = malloc(blocks * sizeof *map->held);
    if (map->local && map->held) return map;
    loom_map_free(map);
    return NULL;
}

static int map_open(struct map *map, int control_fd, int data_fd, bool own) {
    void *at;
    int code = loom_os_map(control_fd, 0, map->control_size, true, &at);
    if (code) return code;
    map->control = at;
    map->descriptors = (struct loom_block *)(map->control + 1);
    code = loom_os_map(data_fd, map->control_size, map->data_size, own, &at);
    if (code) return code;
    map->data = at;
    return LOOM_OK;
}

/* --- Making ----------------------------------------------------------------------------------------------------- */

static uint64_t sizes_sum(const loom_arena *arena) {
    uint64_t sum = 0;
    for (uint32_t i = 0; i < LOOM_SEGMENTS; i++) {
        uint64_t size = atomic_load_explicit(&arena->entries[i].size, memory_order_seq_cst);
        if (__builtin_add_overflow(sum, size, &sum)) return UINT64_MAX;
    }
    return sum;
}

static int entry_claim(loom_arena *arena, uint32_t *index) {
    for (uint32_t i = 0; i < LOOM_SEGMENTS; i++) {
        uint64_t word = atomic_load_explicit(&arena->entries[i].word, memory_order_relaxed);
        if (loom_word_state(word) != LOOM_SEGMENT_FREE) continue;
        uint64_t creating = loom_entry_word(word >> 24, arena->me, LOOM_SEGMENT_CREATING);
        if (atomic_compare_exchange_strong_explicit(&arena->entries[i].word, &word, creating, memory_order_seq_cst,
                                                    memory_order_relaxed)) {
            *index = i;
            return LOOM_OK;
        }
    }
    return LOOM_E_SLOTS;
}

/* Where the file of a segment is; `spilled`: as in its entry. */
static void segment_path(const loom_arena *arena, bool spilled, uint64_t sequence, char path[LOOM_PATH_MAX]) {
    if (spilled)
        snprintf(path, LOOM_PATH_MAX, "%s/%llu", arena->spill, (unsigned long long)sequence);
    else
        loom_os_path(path, LOOM_PATH_MAX, arena->name, sequence);
}

static int file_make(loom_arena *arena, uint32_t index, uint64_t data_size, bool spilled, struct map **out) {
    uint64_t blocks = (data_size + LOOM_BLOCK_MEAN - 1) / LOOM_BLOCK_MEAN, page = loom_os_page();
    if (blocks < LOOM_BLOCKS_MIN) blocks = LOOM_BLOCKS_MIN;
    if (blocks > LOOM_BLOCKS_MAX) blocks = LOOM_BLOCKS_MAX;
    uint64_t control_size = sizeof(struct loom_segment) + blocks * sizeof(struct loom_block);
    control_size = (control_size + page - 1) / page * page;
    uint64_t sequence = atomic_fetch_add_explicit(&arena->control->next_sequence, 1, memory_order_relaxed);
    atomic_store_explicit(&arena->entries[index].sequence, sequence, memory_order_release);
    LOOM_STEP(SEGMENT_NUMBERED);

    char path[LOOM_PATH_MAX];
    segment_path(arena, spilled, sequence, path);
    int fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0) /* no spill folder: the node is dead */
        return errno == ENOSPC || errno == EDQUOT || (spilled && errno == ENOENT) ? LOOM_E_FULL : LOOM_E_OS;
    LOOM_STEP(SEGMENT_CREATED);
    struct map *map = NULL;
    int code = fchmod(fd, 0600) ? LOOM_E_OS : loom_os_reserve(fd, 0, control_size + data_size);
    LOOM_STEP(SEGMENT_RESERVED);
    if (!code) {
        map = map_new(index, sequence, (uint32_t)blocks, control_size, data_size);
        code = map ? map_open(map, fd, fd, true) : LOOM_E_MEMORY;
    }
    if (!code) {
        map->own = true;
        map->spilled = spilled;
        map->free_ids = malloc(blocks * sizeof *map->free_ids);
        code = map->free_ids ? loom_space_open(&map->space, map->blocks, data_size) : LOOM_E_MEMORY;
    }
    int failed = errno;
    close(fd);
    if (code) {
        loom_map_free(map);
        errno = failed;
        return code;
    }
    for (uint32_t id = map->blocks; id-- > 0;) map->free_ids[map->free_count++] = id;
    map->idle_since_ns = loom_os_now_ns();
    struct loom_segment *segment = map->control;
    segment->magic = LOOM_SEGMENT_MAGIC;
    segment->version = LOOM_LAYOUT_VERSION;
    segment->header_size = sizeof *segment;
    segment->sequence = sequence;
    segment->index = index;
    segment->blocks = map->blocks;
    segment->data_offset = control_size;
    segment->data_size = data_size;
    *out = map;
    LOOM_STEP(SEGMENT_INITIALISED);
    return LOOM_OK;
}

int loom_segment_create(loom_arena *arena, uint64_t data_size, bool spilled, struct map **out) {
    uint32_t index;
    int code = entry_claim(arena, &index);
    if (code) return code;
    LOOM_STEP(SEGMENT_CLAIMED);
    struct loom_segment_entry *entry = &arena->entries[index];
    atomic_store_explicit(spilled ? &entry->spilled : &entry->size, data_size, memory_order_seq_cst);
    LOOM_STEP(SEGMENT_SIZED);
    code = LOOM_E_FULL;
    if (spilled || sizes_sum(arena) <= arena->budget) code = file_make(arena, index, data_size, spilled, out);
    if (code) {
        int failed = errno;
        loom_entry_remove(arena, index);
        errno = failed;
        return code;
    }
    uint64_t generation = atomic_load_explicit(&entry->word, memory_order_relaxed) >> 24;
    uint64_t live = loom_entry_word(generation, arena->me, LOOM_SEGMENT_LIVE);
    atomic_store_explicit(&entry->word, live, memory_order_release);
    LOOM_STEP(SEGMENT_LIVE);
    return LOOM_OK;
}

/* --- Removing --------------------------------------------------------------------------------------------------- */

/* Free the memory of a segment's data even where it is still mapped, then its name. Missing files are fine. */
static void file_remove(const loom_arena *arena, bool spilled, uint64_t sequence) {
    char path[LOOM_PATH_MAX];
    segment_path(arena, spilled, sequence, path);
    int fd = open(path, O_RDWR | O_CLOEXEC | O_NOFOLLOW);
    if (fd >= 0) {
        struct loom_segment header;
        uint64_t size = 0, at = 0;
        if (!loom_os_check_file(fd, &size) && pread(fd, &header, sizeof header, 0) == (ssize_t)sizeof header &&
            header.magic == LOOM_SEGMENT_MAGIC)
            at = header.data_offset;
        if (at && at < size) fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)at, (off_t)(size - at));
        close(fd);
    }
    LOOM_STEP(GIVE_PUNCHED);
    unlink(path);
    LOOM_STEP(GIVE_UNLINKED);
}

/* Take a segment out of the table, from whatever state a kill left it in. The caller is its owner or, after the owner's
 * death, the node. The entry names the same owner to the end, and an orphan stays one, so that whoever has to finish
 * a removal that was cut short finds it. */
void loom_entry_remove(loom_arena *arena, uint32_t index) {
    struct loom_segment_entry *entry = &arena->entries[index];
    uint64_t word = atomic_load_explicit(&entry->word, memory_order_relaxed);
    if (loom_word_state(word) != LOOM_SEGMENT_ORPHANED) {
        word = (word & ~UINT64_C(0xff)) | LOOM_SEGMENT_CLOSING;
        atomic_store_explicit(&entry->word, word, memory_order_seq_cst);
    }
    LOOM_STEP(GIVE_CLOSING);
    uint64_t sequence = atomic_load_explicit(&entry->sequence, memory_order_acquire);
    if (sequence) file_remove(arena, atomic_load_explicit(&entry->spilled, memory_order_relaxed) != 0, sequence);
    atomic_store_explicit(&entry->sequence, 0, memory_order_relaxed);
    atomic_store_explicit(&entry->size, 0, memory_order_seq_cst);
    atomic_store_explicit(&entry->spilled, 0, memory_order_seq_cst);
    atomic_fetch_add_explicit(&arena->control->epoch, 1, memory_order_release);
    LOOM_STEP(GIVE_CLEARED);
    uint64_t generation = ((word >> 24) + 1) & 0xffffffffff;
    word = loom_entry_word(generation, LOOM_NODE, LOOM_SEGMENT_FREE);
    atomic_store_explicit(&entry->word, word, memory_order_release);
    LOOM_STEP(GIVE_FREED);
}

void loom_own_give_locked(loom_arena *arena, struct map *map) {
    for (uint32_t i = 0; i < arena->own_count; i++) {
        if (arena->own[i] != map) continue;
        memmove(&arena->own[i], &arena->own[i + 1], (arena->own_count - i - 1) * sizeof map);
        arena->own_count--;
        break;
    }
    uint32_t index = map->index;
    loom_map_forget_locked(arena, map);
    loom_entry_remove(arena, index);
}

/* --- Mapping others' -------------------------------------------------------------------------------------------- */

static bool header_ok(const struct loom_segment *header, const struct map *expected, uint64_t file_size) {
    uint64_t needed = sizeof *header + (uint64_t)header->blocks * sizeof(struct loom_block), page = loom_os_page();
    return header->magic == LOOM_SEGMENT_MAGIC && header->version == LOOM_LAYOUT_VERSION &&
           header->header_size == sizeof *header && header->sequence == expected->sequence &&
           header->index == expected->index && header->blocks > 0 && header->blocks <= LOOM_BLOCKS_MAX &&
           header->data_offset >= needed && header->data_offset % page == 0 && header->data_offset < file_size &&
           header->data_size == file_size - header->data_offset && header->data_size % page == 0;
}

int loom_segment_attach(loom_arena *arena, uint32_t index, struct map **out) {
    struct loom_segment_entry *entry = &arena->entries[index];
    uint32_t state = loom_word_state(atomic_load_explicit(&entry->word, memory_order_acquire));
    struct map expected = {.index = index, .sequence = atomic_load_explicit(&entry->sequence, memory_order_acquire)};
    if ((state != LOOM_SEGMENT_LIVE && state != LOOM_SEGMENT_ORPHANED) || !expected.sequence) return LOOM_E_STALE;
    char path[LOOM_PATH_MAX];
    segment_path(arena, atomic_load_explicit(&entry->spilled, memory_order_relaxed) != 0, expected.sequence, path);
    int control_fd = open(path, O_RDWR | O_CLOEXEC | O_NOFOLLOW);
    if (control_fd < 0)
        return errno == ENOENT ? LOOM_E_STALE : errno == EACCES || errno == EPERM ? LOOM_E_DENIED
                                            : errno == ELOOP                      ? LOOM_E_CORRUPT
                                                                                  : LOOM_E_OS;
    /* The data comes from a descriptor without write permission, so that not even mprotect makes it writable. The
     * detour over /proc opens the very same file, whatever happens to the name meanwhile. */
    char again[32];
    snprintf(again, sizeof again, "/proc/self/fd/%d", control_fd);
    int data_fd = open(again, O_RDONLY | O_CLOEXEC);

    uint64_t size = 0;
    struct loom_segment header;
    struct map *map = NULL;
    int code = data_fd < 0 ? LOOM_E_OS : loom_os_check_file(control_fd, &size);
    if (!code && (pread(control_fd, &header, sizeof header, 0) != (ssize_t)sizeof header ||
                  !header_ok(&header, &expected, size)))
        code = LOOM_E_CORRUPT;
    /* Costs nothing where the pages are there, and everywhere else turns a SIGBUS to come into a return code now. */
    if (!code) code = loom_os_reserve(control_fd, 0, header.data_offset);
    if (!code) {
        map = map_new(index, expected.sequence, header.blocks, header.data_offset, header.data_size);
        code = map ? map_open(map, control_fd, data_fd, false) : LOOM_E_MEMORY;
    }
    int failed = errno;
    close(control_fd);
    if (data_fd >= 0) close(data_fd);
    if (code) {
        loom_map_free(map);
        errno = failed;
        return code;
    }
    *out = map;
    return LOOM_OK;
}

/* --- The handle's table of maps --------------------------------------------------------------------------------- */

struct map *loom_map_find_locked(loom_arena *arena, uint32_t index) {
    struct map *map = arena->maps[index];
    if (!map) return NULL;
    uint64_t sequence = atomic_load_explicit(&arena->entries[index].sequence, memory_order_acquire);
    return map->sequence == sequence ? map : NULL;
}

static uint32_t address_slot(const loom_arena *arena, const unsigned char *data) {
    uint32_t low = 0, high = arena->map_count;
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        if (arena->by_address[middle]->data < data)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

/* Take the map out of the tables; free it, now or with the last block held in it. */
void loom_map_forget_locked(loom_arena *arena, struct map *map) {
    uint32_t slot = address_slot(arena, map->data);
    memmove(&arena->by_address[slot], &arena->by_address[slot + 1], (arena->map_count - slot - 1) * sizeof map);
    arena->map_count--;
    arena->maps[map->index] = NULL;
    map->stale = true;
    if (map->held_count) {
        map->next = arena->stale;
        arena->stale = map;
    } else {
        loom_map_free(map);
    }
}

/* On an error the map stays the caller's. */
int loom_map_adopt_locked(loom_arena *arena, struct map *map) {
    struct map *old = arena->maps[map->index];
    if (old && old->own) return LOOM_E_CORRUPT; /* somebody overwrote the entry of a segment of ours */
    if (map->own) {
        uint64_t wanted = (uint64_t)arena->pending_count + map->blocks;
        for (uint32_t i = 0; i < arena->own_count; i++) wanted += arena->own[i]->blocks;
        if (wanted > arena->pending_capacity) {
            struct pending *bigger = realloc(arena->pending, wanted * sizeof *bigger);
            if (!bigger) return LOOM_E_MEMORY;
            arena->pending = bigger;
            arena->pending_capacity = (uint32_t)wanted;
        }
        arena->own[arena->own_count++] = map;
    }
    if (old) loom_map_forget_locked(arena, old);
    uint32_t slot = address_slot(arena, map->data);
    memmove(&arena->by_address[slot + 1], &arena->by_address[slot], (arena->map_count - slot) * sizeof map);
    arena->by_address[slot] = map;
    arena->map_count++;
    arena->maps[map->index] = map;
    return LOOM_OK;
}

int loom_map_get_locked(loom_arena *arena, uint32_t index, struct map **out) {
    *out = loom_map_find_locked(arena, index);
    if (*out) return LOOM_OK;
    struct map *map;
    int code = loom_segment_attach(arena, index, &map);
    if (code) return code;
    code = loom_map_adopt_locked(arena, map);
    if (code)
        loom_map_free(map);
    else
        *out = map;
    return code;
}

/* Drop maps of segments that are gone, when any went since the last look. */
void loom_maps_refresh_locked(loom_arena *arena) {
    uint64_t epoch = atomic_load_explicit(&arena->control->epoch, memory_order_acquire);
    if (epoch == arena->epoch_seen) return;
    arena->epoch_seen = epoch;
    for (uint32_t i = 0; i < LOOM_SEGMENTS; i++) {
        struct map *map = arena->maps[i];
        if (!map || map->own) continue;
        uint32_t state = loom_word_state(atomic_load_explicit(&arena->entries[i].word, memory_order_relaxed));
        uint64_t sequence = atomic_load_explicit(&arena->entries[i].sequence, memory_order_relaxed);
        if (sequence != map->sequence || (state != LOOM_SEGMENT_LIVE && state != LOOM_SEGMENT_ORPHANED))
            loom_map_forget_locked(arena, map);
    }
}
