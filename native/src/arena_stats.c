/* arena_stats.c -- the tables read for people: figures and listings. */
#include "arena_internal.h"

static void add_counters(loom_stats *stats, struct loom_counters *counters) {
    stats->bytes_shared += atomic_load_explicit(&counters->bytes_shared, memory_order_relaxed);
    stats->bytes_copied += atomic_load_explicit(&counters->bytes_copied, memory_order_relaxed);
    stats->references_sent += atomic_load_explicit(&counters->references_sent, memory_order_relaxed);
    stats->references_accepted += atomic_load_explicit(&counters->references_accepted, memory_order_relaxed);
    stats->leases += atomic_load_explicit(&counters->leases, memory_order_relaxed);
    stats->blocks_spilled += atomic_load_explicit(&counters->blocks_spilled, memory_order_relaxed);
    stats->bytes_spilled += atomic_load_explicit(&counters->bytes_spilled, memory_order_relaxed);
}

static uint32_t tokens_in_flight(loom_arena *arena, uint32_t sender) {
    uint32_t found = 0, count = loom_tokens_reserved(arena, sender);
    if (loom_tokens_ready_locked(arena, sender, count)) return 0; /* no page left: it cannot be read safely */
    for (uint32_t token = 0; token < count; token++) {
        uint64_t word = atomic_load_explicit(&loom_token_at(arena, sender, token)->word, memory_order_relaxed);
        found += loom_word_state(word) == LOOM_TOKEN_INFLIGHT;
    }
    return found;
}

static void add_participants(loom_arena *arena, loom_stats *stats) {
    add_counters(stats, &arena->control->retired);
    for (uint32_t i = 0; i < LOOM_PARTICIPANTS; i++) {
        struct loom_participant *row = &arena->participants[i];
        if (loom_word_state(atomic_load_explicit(&row->word, memory_order_acquire)) == LOOM_PARTICIPANT_FREE) continue;
        stats->participants++;
        add_counters(stats, &row->counters);
        uint32_t count = loom_tokens_reserved(arena, i);
        stats->control_bytes += (uint64_t)count * sizeof(struct loom_token);
        stats->in_flight += tokens_in_flight(arena, i);
    }
}

static void add_segments(loom_arena *arena, loom_stats *stats) {
    for (uint32_t i = 0; i < LOOM_SEGMENTS; i++) {
        struct loom_segment_entry *entry = &arena->entries[i];
        uint32_t state = loom_word_state(atomic_load_explicit(&entry->word, memory_order_acquire));
        bool spilled = atomic_load_explicit(&entry->spilled, memory_order_relaxed) != 0;
        stats->reserved_bytes += atomic_load_explicit(&entry->size, memory_order_relaxed);
        stats->spill_reserved_bytes += atomic_load_explicit(&entry->spilled, memory_order_relaxed);
        if (state == LOOM_SEGMENT_FREE) continue;
        stats->segments++;
        stats->orphaned += state == LOOM_SEGMENT_ORPHANED;
        if (state != LOOM_SEGMENT_LIVE && state != LOOM_SEGMENT_ORPHANED) continue;
        struct map *map;
        if (loom_map_get_locked(arena, i, &map)) continue;
        stats->control_bytes += map->control_size;
        for (uint32_t block = 0, used = loom_blocks_used(map); block < used; block++) {
            const struct loom_block *shared = &map->descriptors[block];
            if (atomic_load_explicit(&shared->state, memory_order_acquire) != LOOM_BLOCK_LEASED) continue;
            if (loom_block_unheld(shared)) continue;
            uint64_t size = atomic_load_explicit(&shared->size, memory_order_relaxed);
            stats->blocks++;
            stats->in_use_bytes += size;
            stats->spilled_blocks += spilled;
            stats->spilled_bytes += spilled ? size : 0;
        }
    }
}

int loom_arena_stats(loom_arena *arena, loom_stats *out) {
    *out = (loom_stats){0};
    int code = loom_enter(arena);
    if (code) return code;
    out->budget_bytes = arena->budget;
    out->control_bytes = LOOM_TOKENS_OFFSET;
    out->free_bytes = loom_os_free_bytes(LOOM_FOLDER);
    out->spill_free_bytes = arena->spill[0] ? loom_os_free_bytes(arena->spill) : 0;
    const struct loom_reclaimed *back = &arena->control->reclaimed;
    out->reclaimed_bytes = atomic_load_explicit(&back->bytes, memory_order_relaxed);
    out->reclaimed_blocks = atomic_load_explicit(&back->blocks, memory_order_relaxed);
    out->reclaimed_references = atomic_load_explicit(&back->references, memory_order_relaxed);
    out->reclaimed_segments = atomic_load_explicit(&back->segments, memory_order_relaxed);
    loom_maps_refresh_locked(arena);
    add_participants(arena, out);
    add_segments(arena, out);
    loom_leave(arena);
    return LOOM_OK;
}

int loom_arena_participants(loom_arena *arena, loom_participant_info *out, uint32_t capacity, uint32_t *count) {
    *count = 0;
    int code = loom_enter(arena);
    if (code) return code;
    for (uint32_t i = 0; i < LOOM_PARTICIPANTS && *count < capacity; i++) {
        uint64_t word = atomic_load_explicit(&arena->participants[i].word, memory_order_acquire);
        uint32_t state = loom_word_state(word);
        if (state == LOOM_PARTICIPANT_FREE) continue;
        uint64_t start_time = atomic_load_explicit(&arena->participants[i].start_time, memory_order_relaxed);
        bool takes_part = state == LOOM_PARTICIPANT_ACTIVE || state == LOOM_PARTICIPANT_CLAIMING;
        out[(*count)++] = (loom_participant_info){i, loom_word_pid(word), start_time,
                                                  takes_part && loom_process_lives(word, start_time)};
    }
    loom_leave(arena);
    return LOOM_OK;
}

int loom_arena_segments(loom_arena *arena, loom_segment_info *out, uint32_t capacity, uint32_t *count) {
    *count = 0;
    int code = loom_enter(arena);
    if (code) return code;
    for (uint32_t i = 0; i < LOOM_SEGMENTS && *count < capacity; i++) {
        struct loom_segment_entry *entry = &arena->entries[i];
        uint64_t word = atomic_load_explicit(&entry->word, memory_order_acquire);
        if (loom_word_state(word) == LOOM_SEGMENT_FREE) continue;
        uint64_t size = atomic_load_explicit(&entry->size, memory_order_relaxed);
        uint64_t spilled = atomic_load_explicit(&entry->spilled, memory_order_relaxed);
        out[(*count)++] = (loom_segment_info){
            .index = i,
            .state = loom_word_state(word),
            .owner = loom_word_who(word),
            .spilled = spilled != 0,
            .sequence = atomic_load_explicit(&entry->sequence, memory_order_relaxed),
            .size = spilled ? spilled : size,
        };
    }
    loom_leave(arena);
    return LOOM_OK;
}

/* False when nobody holds the block. */
static bool block_read(const struct map *map, uint32_t block, uint64_t now, loom_block_info *out) {
    const struct loom_block *shared = &map->descriptors[block];
    if (atomic_load_explicit(&shared->state, memory_order_acquire) != LOOM_BLOCK_LEASED) return false;
    uint64_t held = 0, size = atomic_load_explicit(&shared->size, memory_order_relaxed);
    out->block = block;
    out->size = size < map->data_size ? size : map->data_size;
    out->generation = atomic_load_explicit(&shared->generation, memory_order_relaxed);
    uint64_t leased_ns = atomic_load_explicit(&shared->leased_ns, memory_order_relaxed);
    out->age_ns = leased_ns < now ? now - leased_ns : 0;
    for (uint32_t i = 0; i < LOOM_HOLDER_WORDS; i++)
        held |= out->holders[i] = atomic_load_explicit(&shared->holders[i], memory_order_acquire);
    return held != 0;
}

static int blocks_locked(loom_arena *arena, uint32_t segment, loom_block_info *out, uint32_t capacity,
                         uint32_t *count) {
    struct map *map;
    uint64_t word = atomic_load_explicit(&arena->entries[segment].word, memory_order_acquire);
    if (loom_word_state(word) != LOOM_SEGMENT_LIVE && loom_word_state(word) != LOOM_SEGMENT_ORPHANED) return LOOM_OK;
    int code = loom_map_get_locked(arena, segment, &map);
    if (code) return loom_nothing_there(code) || code == LOOM_E_FULL ? LOOM_OK : code;
    uint64_t now = loom_os_now_ns();
    for (uint32_t block = 0, used = loom_blocks_used(map); block < used && *count < capacity; block++) {
        loom_block_info *row = &out[*count];
        *row = (loom_block_info){.segment = segment, .owner = loom_word_who(word)};
        *count += block_read(map, block, now, row);
    }
    return LOOM_OK;
}

int loom_arena_blocks(loom_arena *arena, uint32_t segment, loom_block_info *out, uint32_t capacity, uint32_t *count) {
    *count = 0;
    int code = loom_enter(arena);
    if (code) return code;
    code = LOOM_E_USAGE;
    if (segment < LOOM_SEGMENTS) {
        loom_maps_refresh_locked(arena);
        code = blocks_locked(arena, segment, out, capacity, count);
    }
    loom_leave(arena);
    return code;
}

int loom_arena_in_flight(loom_arena *arena, uint32_t *counts) {
    for (uint32_t i = 0; i < LOOM_PARTICIPANTS; i++) counts[i] = 0;
    int code = loom_enter(arena);
    if (code) return code;
    for (uint32_t i = 0; i < LOOM_PARTICIPANTS; i++) {
        uint64_t row = atomic_load_explicit(&arena->participants[i].word, memory_order_acquire);
        if (loom_word_state(row) != LOOM_PARTICIPANT_FREE) counts[i] = tokens_in_flight(arena, i);
    }
    loom_leave(arena);
    return LOOM_OK;
}
