/* arena_internal.h -- what one process keeps in private memory, and the functions the core's files share.
 *
 * Functions ending in _locked want the handle's mutex held; the others must be called without it, or do not need it.
 */
#ifndef LOOM_ARENA_INTERNAL_H
#define LOOM_ARENA_INTERNAL_H

#include <pthread.h>
#include <stdbool.h>

#include "loom_arena.h"

#define LOOM_SEGMENT_FIRST (UINT64_C(4) << 20)  /* data bytes of a process's first segment */
#define LOOM_SEGMENT_LARGE (UINT64_C(64) << 20) /* where doubling stops */
#define LOOM_BLOCK_MEAN UINT64_C(8192)          /* a segment has a descriptor for so many bytes of data */
#define LOOM_BLOCKS_MIN 16u
#define LOOM_POLL 16u                           /* tokens, or freed blocks, looked at in passing */
#define LOOM_PRESSURE_NS UINT64_C(1000000000)   /* for so long after somebody found no room nothing is kept warm */
#define LOOM_IDLE_NS UINT64_C(10000000000)      /* wholly free segments older than this are given back by collect */

#define LOOM_WAIT_NS UINT64_C(1000000000)       /* how long to wait for room, when the node does not say */

#define LOOM_STEP(name)                                                                                              \
    do {                                                                                                             \
        if (__builtin_expect(loom_arena_step_hook != NULL, 0)) loom_arena_step_hook(LOOM_STEP_##name);               \
    } while (0)

/* --- Words ------------------------------------------------------------------------------------------------------ */

static inline uint64_t loom_participant_word(uint64_t generation, uint64_t pid, uint64_t state) {
    return generation << 32 | (pid & 0xffffff) << 8 | state;
}
static inline uint64_t loom_entry_word(uint64_t generation, uint64_t owner, uint64_t state) {
    return generation << 24 | owner << 8 | state;
}
static inline uint64_t loom_token_word(uint64_t generation, uint64_t receiver, uint64_t state) {
    return generation << 24 | receiver << 8 | state;
}
static inline uint32_t loom_word_state(uint64_t word) { return (uint32_t)(word & 0xff); }
static inline uint32_t loom_word_who(uint64_t word) { return (uint32_t)(word >> 8 & 0xffff); } /* owner, receiver */
static inline uint32_t loom_word_pid(uint64_t word) { return (uint32_t)(word >> 8 & 0xffffff); }

/* --- Space: the free extents of one segment, sorted by offset (arena_space.c) ----------------------------------- */

struct extent {
    uint64_t offset, size;
};
struct space {
    struct extent *items;
    uint32_t count;
};

int loom_space_open(struct space *space, uint32_t blocks, uint64_t size);
void loom_space_close(struct space *space);
bool loom_space_take(struct space *space, uint64_t size, uint64_t *offset);
void loom_space_give(struct space *space, uint64_t offset, uint64_t size);

/* --- Maps: segments as this process sees them (arena_segment.c) ------------------------------------------------- */

struct local_block {
    uint64_t offset;       /* from here on: valid while held (views + tokens > 0), and for the owner while leased */
    uint64_t size;
    uint64_t generation;
    uint64_t capacity;     /* owner: space taken */
    uint64_t acquisitions; /* owner: the counter at the time of the lease */
    uint32_t views;
    uint32_t tokens;
    bool leased;           /* owner: the space is taken */
    uint32_t pending;      /* owner: 1 + its place in arena->pending, or 0 */
};

struct held {
    uint64_t offset;
    uint32_t block;
};

struct map {
    struct map *next; /* of arena->stale */
    uint32_t index;
    uint32_t blocks;
    uint64_t sequence;
    bool own, stale, spilled;
    struct loom_segment *control;
    struct loom_block *descriptors;
    size_t control_size;
    unsigned char *data;
    uint64_t data_size;
    struct local_block *local; /* [blocks] */
    struct held *held;         /* blocks held by this process, sorted by offset */
    uint32_t held_count;
    uint32_t leased;           /* owner only, from here on */
    uint32_t *free_ids;
    uint32_t free_count;
    struct space space;
    uint64_t idle_since_ns;
};

struct pending {
    struct map *map;
    uint32_t block;
};

struct own_token {
    struct map *map; /* NULL while free */
    uint64_t generation;
    uint32_t block;
    uint32_t position; /* in arena->flying */
};

struct loom_arena {
    pthread_mutex_t mutex;
    _Atomic uint64_t *alive; /* in a page of its own, wiped in a forked child */
    char name[LOOM_NAME_MAX + 1];
    int fd;
    uint32_t me;
    bool closed, abandoned;
    struct loom_control *control;
    struct loom_participant *participants;
    struct loom_segment_entry *entries;
    uint64_t budget;
    uint64_t views;
    struct map *maps[LOOM_SEGMENTS];
    struct map *by_address[LOOM_SEGMENTS];
    uint32_t map_count;
    struct map *own[LOOM_SEGMENTS]; /* oldest first */
    uint32_t own_count;
    struct map *stale;
    struct pending *pending; /* own blocks, not held here, that others hold, or held when last looked at */
    uint32_t pending_count, pending_cursor, pending_capacity;
    struct own_token tokens[LOOM_TOKENS];
    uint32_t token_limit; /* tokens of the own table that have memory */
    uint32_t token_ids[LOOM_TOKENS], token_count;
    uint32_t flying[LOOM_TOKENS], flying_count, flying_cursor;
    uint32_t tokens_seen[LOOM_PARTICIPANTS]; /* how far another's table is known to have memory */
    uint64_t epoch_seen, pressure_seen;
    bool spill_idle; /* an own spilled segment may be wholly free */
    uint32_t full;   /* from here on: of the control file, which others may write to */
    uint64_t wait_ns;
    char spill[LOOM_SPILL_SIZE];
    int spill_fd; /* node only: holds the lock */
};

/* --- arena_os.c: files, /proc, clocks --------------------------------------------------------------------------- */

bool loom_os_name_ok(const char *name);
bool loom_os_is_number(const char *name);
void loom_os_path(char *path, size_t size, const char *name, uint64_t sequence); /* sequence 0: the control file */
int loom_os_reserve(int fd, uint64_t offset, uint64_t size);
int loom_os_check_file(int fd, uint64_t *size);
int loom_os_map(int fd, uint64_t offset, uint64_t size, bool writable, void **out);
int loom_os_boot_id(uint64_t id[2]);
uint64_t loom_os_page(void);
uint64_t loom_os_now_ns(void);
uint64_t loom_os_about_now_ns(void); /* the latest tick: some milliseconds old, and a quarter of the price */
uint64_t loom_os_free_bytes(const char *path);
int loom_os_alive_page(_Atomic uint64_t **out);
void loom_os_alive_free(_Atomic uint64_t *page);
#define LOOM_FOLDER "/dev/shm"
#define LOOM_PATH_MAX (LOOM_SPILL_SIZE + 40)

/* --- arena_control.c -------------------------------------------------------------------------------------------- */

int loom_enter(loom_arena *arena); /* OK with the mutex held; E_FORKED or E_CLOSED without */
static inline void loom_leave(loom_arena *arena) { pthread_mutex_unlock(&arena->mutex); }
struct loom_token *loom_token_at(const loom_arena *arena, uint32_t participant, uint32_t token);
int loom_tokens_ready_locked(loom_arena *arena, uint32_t participant, uint32_t count);
uint32_t loom_tokens_reserved(const loom_arena *arena, uint32_t participant);
void loom_free_handle(loom_arena *arena);
void loom_slot_free(loom_arena *arena, uint32_t participant);
void loom_finish_close_locked(loom_arena *arena); /* the mutex is gone afterwards, and so is the handle */

static inline void loom_count(_Atomic uint64_t *counter, uint64_t amount) { /* one writer */
    atomic_store_explicit(counter, atomic_load_explicit(counter, memory_order_relaxed) + amount, memory_order_relaxed);
}

/* --- arena_segment.c -------------------------------------------------------------------------------------------- */

int loom_segment_create(loom_arena *arena, uint64_t data_size, bool spilled, struct map **out);
int loom_segment_attach(loom_arena *arena, uint32_t index, struct map **out);
int loom_map_adopt_locked(loom_arena *arena, struct map *map);
struct map *loom_map_find_locked(loom_arena *arena, uint32_t index); /* NULL: not mapped, or another file by now */
int loom_map_get_locked(loom_arena *arena, uint32_t index, struct map **out);
void loom_map_forget_locked(loom_arena *arena, struct map *map);
void loom_map_free(struct map *map);
void loom_maps_refresh_locked(loom_arena *arena);
void loom_entry_remove(loom_arena *arena, uint32_t index);
void loom_own_give_locked(loom_arena *arena, struct map *map);

/* --- arena_block.c ---------------------------------------------------------------------------------------------- */

bool loom_block_unheld(const struct loom_block *block); /* nobody holds it, by the double look at `acquisitions` */
void loom_hold_begin_locked(struct map *map, uint32_t block);
void loom_hold_end_locked(loom_arena *arena, struct map *map, uint32_t block);
void loom_bit_set(struct loom_block *block, uint32_t participant);
void loom_bit_clear(struct loom_block *block, uint32_t participant);
void loom_pending_poll_locked(loom_arena *arena, uint32_t limit);
uint64_t loom_trim_locked(loom_arena *arena, bool idle_only);
void loom_spill_give_locked(loom_arena *arena);
void loom_pressure_locked(loom_arena *arena);
bool loom_lookup_locked(loom_arena *arena, const void *data, uint64_t size, struct map **map, uint32_t *block,
                        uint64_t *offset);

/* --- arena_token.c ---------------------------------------------------------------------------------------------- */

void loom_tokens_poll_locked(loom_arena *arena, uint32_t limit);

/* --- arena_spill.c ---------------------------------------------------------------------------------------------- */

int loom_spill_make(loom_arena *arena, const char *folder);
bool loom_spill_ok(const char *spill, const char *name); /* `spill` may be a path that somebody overwrote */
int loom_spill_remove(const char *spill, uint64_t *count);

/* --- arena_reap.c ----------------------------------------------------------------------------------------------- */

int loom_revoke_addressed_locked(loom_arena *arena, uint32_t participant, uint64_t *revoked);
bool loom_process_lives(uint64_t word, uint64_t start_time);

static inline uint32_t loom_blocks_used(const struct map *map) {
    uint32_t used = atomic_load_explicit(&map->control->high_water, memory_order_acquire);
    return used < map->blocks ? used : map->blocks;
}

/* A segment that cannot be mapped because it is gone or damaged holds nothing that could be released. */
static inline bool loom_nothing_there(int code) {
    return code == LOOM_E_STALE || code == LOOM_E_CORRUPT || code == LOOM_E_DENIED;
}

#endif
