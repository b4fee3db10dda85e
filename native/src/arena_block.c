/* arena_block.c -- leases: taking space, holding, releasing, and noticing that a block is free. */
#include <errno.h>
#include <string.h>

#include "arena_internal.h"

/* --- Holder bits ------------------------------------------------------------------------------------------------ */

void loom_bit_set(struct loom_block *block, uint32_t participant) {
    atomic_fetch_or_explicit(&block->holders[participant / 64], UINT64_C(1) << participant % 64, memory_order_acq_rel);
}

void loom_bit_clear(struct loom_block *block, uint32_t participant) {
    uint64_t others = ~(UINT64_C(1) << participant % 64);
    atomic_fetch_and_explicit(&block->holders[participant / 64], others, memory_order_release);
}

bool loom_block_unheld(const struct loom_block *block) {
    uint64_t before = atomic_load_explicit(&block->acquisitions, memory_order_acquire);
    for (uint32_t i = 0; i < LOOM_HOLDER_WORDS; i++) {
        if (i == LOOM_HOLDER_WORDS / 2) LOOM_STEP(SCAN_HALFWAY);
        if (atomic_load_explicit(&block->holders[i], memory_order_acquire)) return false;
    }
    return atomic_load_explicit(&block->acquisitions, memory_order_relaxed) == before;
}

/* --- Holds of this process -------------------------------------------------------------------------------------- */

static uint32_t held_slot(const struct map *map, uint64_t offset) {
    uint32_t low = 0, high = map->held_count;
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        if (map->held[middle].offset < offset)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

/* The first view or token of a block: local->offset is set, the shared bit too. */
void loom_hold_begin_locked(struct map *map, uint32_t block) {
    uint64_t offset = map->local[block].offset;
    uint32_t slot = held_slot(map, offset);
    memmove(&map->held[slot + 1], &map->held[slot], (map->held_count - slot) * sizeof *map->held);
    map->held[slot] = (struct held){offset, block};
    map->held_count++;
}

static void pending_add(loom_arena *arena, struct map *map, uint32_t block) {
    arena->pending[arena->pending_count++] = (struct pending){map, block};
    map->local[block].pending = arena->pending_count;
}

static void pending_remove(loom_arena *arena, struct map *map, uint32_t block) {
    uint32_t at = map->local[block].pending;
    if (!at) return;
    map->local[block].pending = 0;
    struct pending last = arena->pending[--arena->pending_count];
    if (at - 1 == arena->pending_count) return;
    arena->pending[at - 1] = last;
    last.map->local[last.block].pending = at;
}

/* Owner: the block's space can be leased again. */
static void block_free(loom_arena *arena, struct map *map, uint32_t block) {
    struct local_block *local = &map->local[block];
    pending_remove(arena, map, block);
    atomic_store_explicit(&map->descriptors[block].state, LOOM_BLOCK_FREE, memory_order_relaxed);
    local->leased = false;
    loom_space_give(&map->space, local->offset, local->capacity);
    map->free_ids[map->free_count++] = block;
    if (!--map->leased) {
        if (map->spilled) arena->spill_idle = true;
        uint64_t pressure = atomic_load_explicit(&arena->control->pressure, memory_order_relaxed);
        map->idle_since_ns = loom_os_now_ns();
        if (map->idle_since_ns - pressure < LOOM_PRESSURE_NS) arena->pressure_seen = 0; /* somebody may wait for it */
    }
    LOOM_STEP(RELEASE_FREED);
}

/* Owner, not holding the block: has everybody else let go? */
static bool block_free_now(const struct map *map, uint32_t block) {
    const struct loom_block *shared = &map->descriptors[block];
    /* Nobody took it over since the lease: then nobody can, for only a holder can send it. No need to look at 16
     * words. */
    uint64_t acquisitions = atomic_load_explicit(&shared->acquisitions, memory_order_acquire);
    if (acquisitions == map->local[block].acquisitions) return true;
    return loom_block_unheld(shared);
}

/* The last view or token of a block is gone. */
void loom_hold_end_locked(loom_arena *arena, struct map *map, uint32_t block) {
    struct local_block *local = &map->local[block];
    uint32_t slot = held_slot(map, local->offset);
    while (map->held[slot].block != block) slot++; /* overwritten descriptors may claim the same offset twice */
    map->held_count--;
    memmove(&map->held[slot], &map->held[slot + 1], (map->held_count - slot) * sizeof *map->held);
    LOOM_STEP(RELEASE_BEGUN);
    loom_bit_clear(&map->descriptors[block], arena->me);
    LOOM_STEP(RELEASE_CLEARED);
    if (map->own) {
        if (block_free_now(map, block))
            block_free(arena, map, block);
        else if (!local->pending)
            pending_add(arena, map, block);
    } else if (map->stale && !map->held_count) {
        struct map **link = &arena->stale;
        while (*link != map) link = &(*link)->next;
        *link = map->next;
        loom_map_free(map);
    }
}

void loom_pending_poll_locked(loom_arena *arena, uint32_t limit) {
    for (uint32_t rest = arena->pending_count; rest && limit; rest--, limit--) {
        if (arena->pending_cursor >= arena->pending_count) arena->pending_cursor = 0;
        if (!arena->pending_count) return;
        struct pending entry = arena->pending[arena->pending_cursor];
        const struct local_block *local = &entry.map->local[entry.block];
        if (local->views + local->tokens)
            pending_remove(arena, entry.map, entry.block); /* taken back meanwhile; its release looks again */
        else if (block_free_now(entry.map, entry.block))
            block_free(arena, entry.map, entry.block);
        else
            arena->pending_cursor++;
    }
}

/* --- Giving back ------------------------------------------------------------------------------------------------ */

uint64_t loom_trim_locked(loom_arena *arena, bool idle_only) {
    uint64_t now = idle_only ? loom_os_now_ns() : 0, given = 0;
    bool kept = !idle_only;
    for (uint32_t i = 0; i < arena->own_count;) {
        struct map *map = arena->own[i];
        bool give = !map->leased;
        if (give && idle_only) {
            if (!kept && map->data_size <= LOOM_SEGMENT_FIRST) {
                kept = true;
                give = false;
            } else {
                give = now - map->idle_since_ns >= LOOM_IDLE_NS;
            }
        }
        if (!give) {
            i++;
            continue;
        }
        given += map->data_size;
        loom_own_give_locked(arena, map);
    }
    return given;
}

/* Give back the own spilled segments that hold nothing, if there may be any. */
void loom_spill_give_locked(loom_arena *arena) {
    if (__builtin_expect(!arena->spill_idle, 1)) return;
    arena->spill_idle = false;
    for (uint32_t i = 0; i < arena->own_count;) {
        struct map *map = arena->own[i];
        if (map->spilled && !map->leased)
            loom_own_give_locked(arena, map);
        else
            i++;
    }
}

/* Somebody found no room: give back what nobody uses, now and whenever a segment falls free within the next second. */
void loom_pressure_locked(loom_arena *arena) {
    loom_spill_give_locked(arena);
    uint64_t pressure = atomic_load_explicit(&arena->control->pressure, memory_order_relaxed);
    if (__builtin_expect(pressure == arena->pressure_seen, 1)) return;
    arena->pressure_seen = pressure;
    loom_tokens_poll_locked(arena, UINT32_MAX);
    loom_pending_poll_locked(arena, UINT32_MAX);
    loom_trim_locked(arena, false);
}

int loom_arena_collect(loom_arena *arena, uint64_t *open) {
    if (open) *open = 0;
    int code = loom_enter(arena);
    if (code) return code;
    loom_tokens_poll_locked(arena, UINT32_MAX);
    loom_pending_poll_locked(arena, UINT32_MAX);
    loom_maps_refresh_locked(arena);
    loom_pressure_locked(arena);
    loom_trim_locked(arena, true);
    if (open) *open = arena->flying_count;
    for (uint32_t i = 0; open && i < arena->own_count; i++)
        if (arena->own[i]->spilled) *open += arena->own[i]->leased;
    loom_leave(arena);
    return LOOM_OK;
}

int loom_arena_trim(loom_arena *arena, uint64_t *bytes) {
    *bytes = 0;
    int code = loom_enter(arena);
    if (code) return code;
    loom_tokens_poll_locked(arena, UINT32_MAX);
    loom_pending_poll_locked(arena, UINT32_MAX);
    loom_maps_refresh_locked(arena);
    *bytes = loom_trim_locked(arena, false);
    loom_leave(arena);
    return LOOM_OK;
}

/* --- Lease and release ------------------------------------------------------------------------------------------ */

static uint64_t rounded(uint64_t size) {
    uint64_t unit = size < LOOM_PAGE ? LOOM_ALIGNMENT : LOOM_PAGE;
    return size ? (size + unit - 1) / unit * unit : unit;
}

static bool lease_in(loom_arena *arena, struct map *map, uint64_t size, loom_view *out) {
    uint64_t capacity = rounded(size), offset;
    if (!map->free_count || !loom_space_take(&map->space, capacity, &offset)) return false;
    uint32_t block = map->free_ids[--map->free_count];
    struct loom_block *shared = &map->descriptors[block];
    uint64_t generation = atomic_fetch_add_explicit(&arena->control->next_generation, 1, memory_order_relaxed);
    struct local_block *local = &map->local[block];
    *local = (struct local_block){.offset = offset,
                                  .size = size,
                                  .generation = generation,
                                  .capacity = capacity,
                                  .acquisitions = atomic_load_explicit(&shared->acquisitions, memory_order_relaxed),
                                  .views = 1,
                                  .leased = true};
    if (block >= atomic_load_explicit(&map->control->high_water, memory_order_relaxed))
        atomic_store_explicit(&map->control->high_water, block + 1, memory_order_release);
    atomic_store_explicit(&shared->offset, offset, memory_order_relaxed);
    atomic_store_explicit(&shared->size, size, memory_order_relaxed);
    atomic_store_explicit(&shared->generation, generation, memory_order_relaxed);
    atomic_store_explicit(&shared->leased_ns, loom_os_about_now_ns(), memory_order_relaxed);
    LOOM_STEP(LEASE_DESCRIBED);
    loom_bit_set(shared, arena->me);
    LOOM_STEP(LEASE_HELD);
    atomic_store_explicit(&shared->state, LOOM_BLOCK_LEASED, memory_order_release);
    LOOM_STEP(LEASE_LEASED);
    map->leased++;
    loom_hold_begin_locked(map, block);
    arena->views++;
    struct loom_counters *counters = &arena->participants[arena->me].counters;
    loom_count(&counters->leases, 1);
    if (__builtin_expect(map->spilled, 0)) {
        loom_count(&counters->blocks_spilled, 1);
        loom_count(&counters->bytes_spilled, size);
    }
    *out = (loom_view){arena, map, map->data + offset, size, generation, map->index, block, 0};
    return true;
}

static bool lease_anywhere(loom_arena *arena, uint64_t size, bool spilled, loom_view *out) {
    for (uint32_t i = 0; i < arena->own_count; i++)
        if (arena->own[i]->spilled == spilled && lease_in(arena, arena->own[i], size, out)) return true;
    return false;
}

static bool lease_warm_locked(loom_arena *arena, uint64_t size, loom_view *out) {
    loom_pending_poll_locked(arena, LOOM_POLL);
    loom_tokens_poll_locked(arena, LOOM_POLL);
    if (lease_anywhere(arena, size, false, out)) return true;
    loom_tokens_poll_locked(arena, UINT32_MAX);
    loom_pending_poll_locked(arena, UINT32_MAX);
    return lease_anywhere(arena, size, false, out);
}

int loom_arena_lease_warm(loom_arena *arena, uint64_t size, loom_view *out) {
    out->arena = NULL;
    int code = loom_enter(arena);
    if (code) return code;
    loom_pressure_locked(arena);
    code = lease_warm_locked(arena, size, out) ? LOOM_OK : LOOM_E_FULL;
    loom_leave(arena);
    return code;
}

/* Make a segment that has room for the request: a good deal larger if there is room for that. */
static int segment_for(loom_arena *arena, uint64_t size, uint32_t owned, bool spilled, struct map **map) {
    uint64_t page = loom_os_page(), least = (rounded(size) + page - 1) / page * page;
    uint64_t wanted = spilled ? LOOM_SEGMENT_FIRST : owned < 4 ? LOOM_SEGMENT_FIRST << owned : LOOM_SEGMENT_LARGE;
    if (wanted < least) wanted = least;
    for (;;) {
        int code = loom_segment_create(arena, wanted, spilled, map);
        if (code != LOOM_E_FULL || wanted == least) return code;
        wanted = wanted / 2 / page * page;
        if (wanted < least) wanted = least;
    }
}

/* The mutex is not held while the file is made. On OK it is held again, and `map` is one of our own. */
static int segment_add(loom_arena *arena, uint64_t size, uint32_t owned, bool spilled, struct map **map) {
    int code = segment_for(arena, size, owned, spilled, map), failed = errno;
    if (code) return code;
    int entered = loom_enter(arena);
    code = entered ? entered : loom_map_adopt_locked(arena, *map);
    if (!code) return LOOM_OK;
    uint32_t index = (*map)->index;
    loom_map_free(*map);
    if (entered != LOOM_E_FORKED) loom_entry_remove(arena, index); /* a forked child has no business with the file */
    if (!entered) loom_leave(arena);
    errno = failed;
    return code;
}

/* No room in memory. OK: the block is in the spill folder. */
static int lease_spilled(loom_arena *arena, uint64_t size, loom_view *out) {
    int code = loom_enter(arena);
    if (code) return code;
    bool found = lease_anywhere(arena, size, true, out);
    loom_leave(arena);
    if (found) return LOOM_OK;
    struct map *map;
    code = segment_add(arena, size, 0, true, &map);
    if (code) return code;
    lease_in(arena, map, size, out);
    loom_leave(arena);
    return LOOM_OK;
}

static bool no_room(int code) { return code == LOOM_E_FULL || code == LOOM_E_SLOTS; }

/* Give back own segments that are too small to serve; false when there are none: then tell the others. */
static int make_room(loom_arena *arena, bool *trimmed) {
    int code = loom_enter(arena);
    if (code) return code;
    *trimmed = !*trimmed && loom_trim_locked(arena, false);
    if (!*trimmed) {
        arena->pressure_seen = loom_os_now_ns();
        atomic_store_explicit(&arena->control->pressure, arena->pressure_seen, memory_order_relaxed);
    }
    loom_leave(arena);
    return LOOM_OK;
}

int loom_arena_lease(loom_arena *arena, uint64_t size, loom_view *out) {
    out->arena = NULL;
    int code, entered, failed = 0;
    bool trimmed = false;
    do {
        code = loom_enter(arena);
        if (code) return code;
        if (!trimmed) loom_pressure_locked(arena);
        bool fits = size <= arena->budget, found = fits && lease_warm_locked(arena, size, out);
        uint32_t owned = arena->own_count;
        loom_leave(arena);
        if (found) return LOOM_OK;
        if (!fits) {
            code = LOOM_E_FULL;
            break;
        }
        struct map *map;
        code = segment_add(arena, size, owned, false, &map);
        if (!code) {
            lease_in(arena, map, size, out);
            loom_leave(arena);
        }
        if (!no_room(code)) return code;
        failed = errno;
        entered = make_room(arena, &trimmed);
        if (entered) return entered;
    } while (trimmed);
    if (code == LOOM_E_FULL && arena->full == LOOM_FULL_SPILL) return lease_spilled(arena, size, out);
    errno = failed;
    return code;
}

int loom_arena_release(loom_view *view) {
    loom_arena *arena = view->arena;
    if (!arena) return LOOM_E_CLOSED;
    view->arena = NULL;
    if (!atomic_load_explicit(arena->alive, memory_order_relaxed)) return LOOM_E_FORKED;
    pthread_mutex_lock(&arena->mutex);
    struct map *map = view->map;
    struct local_block *local = &map->local[view->block];
    arena->views--;
    if (!--local->views && !local->tokens && !arena->abandoned) loom_hold_end_locked(arena, map, view->block);
    if (arena->closed && !arena->views) {
        loom_finish_close_locked(arena);
        return LOOM_OK;
    }
    if (!arena->closed) loom_pressure_locked(arena);
    loom_leave(arena);
    return LOOM_OK;
}

/* --- Lookup ----------------------------------------------------------------------------------------------------- */

bool loom_lookup_locked(loom_arena *arena, const void *data, uint64_t size, struct map **map, uint32_t *block,
                        uint64_t *offset) {
    const unsigned char *at = data;
    uint32_t low = 0, high = arena->map_count; /* the last map that starts at or before `at` */
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        if (arena->by_address[middle]->data <= at)
            low = middle + 1;
        else
            high = middle;
    }
    if (!low) return false;
    struct map *found = arena->by_address[low - 1];
    uint64_t in_data = (uint64_t)(at - found->data);
    if (in_data >= found->data_size) return false;
    uint32_t slot = held_slot(found, in_data + 1);
    if (!slot) return false;
    const struct local_block *local = &found->local[found->held[slot - 1].block];
    uint64_t in_block = in_data - local->offset;
    if (in_block > local->size || size > local->size - in_block) return false;
    *map = found;
    *block = found->held[slot - 1].block;
    *offset = in_block;
    return true;
}

int loom_arena_holds(loom_arena *arena, const void *data, uint64_t size) {
    struct map *map;
    uint32_t block;
    uint64_t offset;
    if (loom_enter(arena)) return 0;
    bool found = loom_lookup_locked(arena, data, size, &map, &block, &offset);
    loom_leave(arena);
    return found;
}
