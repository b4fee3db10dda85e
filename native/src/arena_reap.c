/* arena_reap.c -- the node's work after a death. */
#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

#include "arena_internal.h"

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
        if (loom_nothing_there(code)) continue;
        if (code) return code;
        for (uint32_t block = 0, used = loom_blocks_used(map); block < used; block++) {
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
            for (uint32_t block = 0, used = loom_blocks_used(map); block < used && !held; block++)
                held = !loom_block_unheld(&map->descriptors[block]);
        if (held) continue;
        if (!code && !map->own) loom_map_forget_locked(arena, map);
        entry_reclaim(arena, i);
    }
    return LOOM_OK;
}

bool loom_process_lives(uint64_t word, uint64_t start_time) {
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
            uint64_t start_time = atomic_load_explicit(&row->start_time, memory_order_acquire);
            if (loom_process_lives(word, start_time)) return LOOM_E_ALIVE;
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
