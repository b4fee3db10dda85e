/* arena_reap.c -- the node's work after a death, and the tables read for people. */
#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

#include "arena_internal.h"

/* --- Reaping ---------------------------------------------------------------------------------------------------- */

static void reclaimed(_Atomic uint64_t *counter, uint64_t amount) {
    atomic_fetch_add_explicit(counter, amount, memory_order_relaxed);
}

static bool token_revoke(struct loom_token *token, uint64_t word) {
    uint64_t revoked = (word & ~UINT64_C(0xff)) | LOOM_TOKEN_REVOKED;
    return atomic_compare_exchange_strong_explicit(&token->word, &word, revoked, memory_order_acq_rel,
                                                   memory_order_relaxed);
}

/* Nobody will accept what is addressed to this participant: give the senders their holds back. `revoked`: how many. */
int loom_revoke_addressed_locked(loom_arena *arena, uint32_t participant, uint64_t *revoked) {
    *revoked = 0;
    for (uint32_t sender = 0; sender < LOOM_PARTICIPANTS; sender++) {
        uint64_t row = atomic_load_explicit(&arena->participants[sender].word, memory_order_acquire);
        if (loom_word_state(row) == LOOM_PARTICIPANT_FREE) continue;
        uint32_t count = loom_tokens_reserved(arena, sender);
        int code = loom_tokens_ready_locked(arena, sender, count);
        if (code) return code;
        for (uint32_t i = 0; i < count; i++) {
            struct loom_token *token = loom_token_at(arena, sender, i);
            uint64_t word = atomic_load_explicit(&token->word, memory_order_acquire);
            if (loom_word_state(word) == LOOM_TOKEN_INFLIGHT && loom_word_who(word) == participant)
                *revoked += token_revoke(token, word);
        }
    }
    return LOOM_OK;
}

/* What a dead participant's references in flight still need. */
struct flight {
    uint32_t count;
    struct {
        uint32_t segment, block;
    } blocks[LOOM_TOKENS];
};

/* Revoke or list the references that a dead participant left in flight; free its other tokens. */
static int own_tokens(loom_arena *arena, uint32_t participant, bool revoke, struct flight *flight) {
    uint32_t count = loom_tokens_reserved(arena, participant);
    int code = loom_tokens_ready_locked(arena, participant, count);
    if (code) return code;
    for (uint32_t i = 0; i < count; i++) {
        struct loom_token *token = loom_token_at(arena, participant, i);
        uint64_t word = atomic_load_explicit(&token->word, memory_order_acquire);
        if (loom_word_state(word) == LOOM_TOKEN_INFLIGHT) {
            if (!revoke) {
                flight->blocks[flight->count].segment = atomic_load_explicit(&token->segment, memory_order_relaxed);
                flight->blocks[flight->count++].block = atomic_load_explicit(&token->block, memory_order_relaxed);
                continue;
            }
            /* or it was accepted this moment: resolved either way */
            if (token_revoke(token, word)) reclaimed(&arena->control->reclaimed.references, 1);
        }
        word = atomic_load_explicit(&token->word, memory_order_acquire);
        atomic_store_explicit(&token->word, (word & ~UINT64_C(0xff)) | LOOM_TOKEN_FREE, memory_order_relaxed);
    }
    return LOOM_OK;
}

static uint32_t blocks_used(const struct map *map) {
    uint32_t used = atomic_load_explicit(&map->control->high_water, memory_order_acquire);
    return used < map->blocks ? used : map->blocks;
}

/* A segment that cannot be mapped because it is gone or damaged holds nothing that could be released. */
static bool nothing_there(int code) { return code == LOOM_E_STALE || code == LOOM_E_CORRUPT || code == LOOM_E_DENIED; }

static bool flies(const struct flight *flight, uint32_t segment, uint32_t block) {
    for (uint32_t i = 0; i < flight->count; i++)
        if (flight->blocks[i].segment == segment && flight->blocks[i].block == block) return true;
    return false;
}

static int clear_bits(loom_arena *arena, uint32_t participant, const struct flight *flight) {
    uint64_t bit = UINT64_C(1) << participant % 64;
    for (uint32_t i = 0; i < LOOM_SEGMENTS; i++) {
        uint32_t state = loom_word_state(atomic_load_explicit(&arena->entries[i].word, memory_order_acquire));
        if (state != LOOM_SEGMENT_LIVE && state != LOOM_SEGMENT_ORPHANED) continue;
        struct map *map;
        int code = loom_map_get_locked(arena, i, &map);
        if (nothing_there(code)) continue;
        if (code) return code;
        for (uint32_t block = 0, used = blocks_used(map); block < used; block++) {
            struct loom_block *shared = &map->descriptors[block];
            bool held = atomic_load_explicit(&shared->holders[participant / 64], memory_order_relaxed) & bit;
            if (!held || flies(flight, i, block)) continue;
            uint64_t size = atomic_load_explicit(&shared->size, memory_order_relaxed);
            loom_bit_clear(shared, participant);
            if (!loom_block_unheld(shared)) continue;
            reclaimed(&arena->control->reclaimed.blocks, 1);
            reclaimed(&arena->control->reclaimed.bytes, size < map->data_size ? size : map->data_size);
        }
    }
    return LOOM_OK;
}

static void entry_reclaim(loom_arena *arena, uint32_t index) {
    loom_entry_remove(arena, index);
    reclaimed(&arena->control->reclaimed.segments, 1);
}

static void orphan_segments(loom_arena *arena, uint32_t participant) {
    for (uint32_t i = 0; i < LOOM_SEGMENTS; i++) {
        struct loom_segment_entry *entry = &arena->entries[i];
        uint64_t word = atomic_load_explicit(&entry->word, memory_order_acquire);
        uint32_t state = loom_word_state(word);
        if (state == LOOM_SEGMENT_FREE || loom_word_who(word) != participant) continue;
        if (state == LOOM_SEGMENT_LIVE)
            atomic_store_explicit(&entry->word, loom_entry_word(word >> 24, LOOM_NODE, LOOM_SEGMENT_ORPHANED),
                                  memory_order_release);
        else if (state == LOOM_SEGMENT_CREATING || state == LOOM_SEGMENT_CLOSING)
            entry_reclaim(arena, i);
    }
}

static int remove_orphans(loom_arena *arena) {
    for (uint32_t i = 0; i < LOOM_SEGMENTS; i++) {
        uint64_t word = atomic_load_explicit(&arena->entries[i].word, memory_order_acquire);
        if (loom_word_state(word) != LOOM_SEGMENT_ORPHANED) continue;
        struct map *map;
        int code = loom_map_get_locked(arena, i, &map);
        if (code == LOOM_E_CORRUPT || code == LOOM_E_DENIED) continue; /* readers may live: destroy nothing */
        if (code && code != LOOM_E_STALE) return code;
        bool held = false;
        if (!code)
            for (uint32_t block = 0, used = blocks_used(map); block < used && !held; block++)
                held = !loom_block_unheld(&map->descriptors[block]);
        if (held) continue;
        if (!code && !map->own) loom_map_forget_locked(arena, map);
        entry_reclaim(arena, i);
    }
    return LOOM_OK;
}

static bool process_lives(uint64_t word, uint64_t start_time) {
    uint64_t ticks;
    int code = loom_process_start_time(loom_word_pid(word), &ticks);
    if (code) return code != LOOM_E_NOT_FOUND;
    return !start_time || ticks == start_time; /* no start time yet: its claim is under way */
}

static int reap_locked(loom_arena *arena, uint32_t participant, bool revoke, uint64_t *in_flight) {
    struct loom_participant *row = &arena->participants[participant];
    uint64_t word = atomic_load_explicit(&row->word, memory_order_acquire), reaping;
    do { /* a slot that changes hands meanwhile has another word: its generation went up */
        uint32_t state = loom_word_state(word);
        if (state == LOOM_PARTICIPANT_FREE) return LOOM_OK;
        if (state == LOOM_PARTICIPANT_CLAIMING || state == LOOM_PARTICIPANT_ACTIVE) {
            if (process_lives(word, atomic_load_explicit(&row->start_time, memory_order_acquire))) return LOOM_E_ALIVE;
        }
        reaping = (word & ~UINT64_C(0xff)) | LOOM_PARTICIPANT_REAPING;
    } while (!atomic_compare_exchange_weak_explicit(&row->word, &word, reaping, memory_order_acq_rel,
                                                    memory_order_acquire));
    LOOM_STEP(REAP_MARKED);
    uint64_t revoked;
    int code = loom_revoke_addressed_locked(arena, participant, &revoked);
    reclaimed(&arena->control->reclaimed.references, revoked);
    LOOM_STEP(REAP_ADDRESSED);
    struct flight flight;
    flight.count = 0;
    if (!code) code = own_tokens(arena, participant, revoke, &flight);
    LOOM_STEP(REAP_TOKENS);
    if (!code) code = clear_bits(arena, participant, &flight);
    if (code) return code;
    LOOM_STEP(REAP_BITS);
    orphan_segments(arena, participant);
    LOOM_STEP(REAP_SEGMENTS);
    *in_flight = flight.count;
    if (flight.count) return LOOM_OK; /* the slot stays, for the bits and tokens that do */
    loom_slot_free(arena, participant);
    LOOM_STEP(REAP_FREED);
    return LOOM_OK;
}

static int enter_node(loom_arena *arena) {
    int code = loom_enter(arena);
    if (code || arena->me == LOOM_NODE) return code;
    loom_leave(arena);
    return LOOM_E_USAGE;
}

int loom_arena_reap(loom_arena *arena, uint32_t participant, int revoke, uint64_t *in_flight) {
    *in_flight = 0;
    int code = enter_node(arena);
    if (code) return code;
    code = LOOM_E_USAGE;
    if (participant != LOOM_NODE && participant < LOOM_PARTICIPANTS)
        code = reap_locked(arena, participant, revoke, in_flight);
    if (!code) code = remove_orphans(arena);
    loom_leave(arena);
    return code;
}

int loom_arena_sweep(loom_arena *arena) {
    int code = enter_node(arena);
    if (code) return code;
    for (uint32_t i = LOOM_NODE + 1; i < LOOM_PARTICIPANTS && !code; i++) {
        uint64_t in_flight = 0;
        uint32_t state = loom_word_state(atomic_load_explicit(&arena->participants[i].word, memory_order_acquire));
        if (state == LOOM_PARTICIPANT_FREE) continue;
        code = reap_locked(arena, i, false, &in_flight);
        if (code == LOOM_E_ALIVE) code = LOOM_OK;
    }
    if (!code) code = remove_orphans(arena);
    loom_tokens_poll_locked(arena, UINT32_MAX);
    loom_pending_poll_locked(arena, UINT32_MAX);
    loom_spill_give_locked(arena);
    loom_maps_refresh_locked(arena);
    loom_leave(arena);
    return code;
}

int loom_arena_destroy(loom_arena *arena) {
    int code = enter_node(arena);
    if (code) return code;
    loom_leave(arena);
    if (arena->spill[0]) loom_spill_remove(arena->spill, NULL); /* the control file may have lost it */
    return loom_arena_destroy_files(arena->name, NULL);
}

/* --- For people ------------------------------------------------------------------------------------------------- */

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
    if (loom_tokens_ready_locked(arena, sender, count)) return 0; /* no page left: what is there cannot be read safely */
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
        for (uint32_t block = 0, used = blocks_used(map); block < used; block++) {
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
                                                  takes_part && process_lives(word, start_time)};
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
    if (code) return nothing_there(code) || code == LOOM_E_FULL ? LOOM_OK : code;
    uint64_t now = loom_os_now_ns();
    for (uint32_t block = 0, used = blocks_used(map); block < used && *count < capacity; block++) {
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
