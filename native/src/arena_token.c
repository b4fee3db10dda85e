/* arena_token.c -- references in flight: send, recall, accept. */
#include <errno.h>

#include "arena_internal.h"

#define LOOM_TOKEN_GENERATION UINT64_C(0xffffffffff)

/* --- Sender ----------------------------------------------------------------------------------------------------- */

static void token_free(loom_arena *arena, uint32_t id) {
    struct own_token *own = &arena->tokens[id];
    struct loom_token *token = loom_token_at(arena, arena->me, id);
    atomic_store_explicit(&token->word, loom_token_word(own->generation, 0, LOOM_TOKEN_FREE), memory_order_relaxed);
    LOOM_STEP(TOKEN_FREED);
    uint32_t last = arena->flying[--arena->flying_count];
    arena->flying[own->position] = last;
    arena->tokens[last].position = own->position;
    arena->token_ids[arena->token_count++] = id;
    struct map *map = own->map;
    own->map = NULL;
    struct local_block *local = &map->local[own->block];
    if (!--local->tokens && !local->views) loom_hold_end_locked(arena, map, own->block);
}

void loom_tokens_poll_locked(loom_arena *arena, uint32_t limit) {
    for (uint32_t rest = arena->flying_count; rest && limit; rest--, limit--) {
        if (arena->flying_cursor >= arena->flying_count) arena->flying_cursor = 0;
        uint32_t id = arena->flying[arena->flying_cursor];
        uint64_t word = atomic_load_explicit(&loom_token_at(arena, arena->me, id)->word, memory_order_acquire);
        if (loom_word_state(word) == LOOM_TOKEN_INFLIGHT)
            arena->flying_cursor++;
        else
            token_free(arena, id);
    }
}

static int tokens_grow(loom_arena *arena) {
    if (arena->token_limit >= LOOM_TOKENS) return LOOM_E_TOKENS;
    uint32_t from = arena->token_limit;
    int code = loom_tokens_ready_locked(arena, arena->me, from + 1);
    if (code) return code;
    arena->token_limit = arena->tokens_seen[arena->me];
    atomic_store_explicit(&arena->participants[arena->me].tokens_reserved, arena->token_limit, memory_order_release);
    for (uint32_t i = arena->token_limit; i-- > from;) arena->token_ids[arena->token_count++] = i;
    return LOOM_OK;
}

static int token_take(loom_arena *arena, uint32_t *id) {
    if (!arena->token_count) loom_tokens_poll_locked(arena, UINT32_MAX);
    if (!arena->token_count) {
        int code = tokens_grow(arena);
        if (code) return code;
    }
    *id = arena->token_ids[--arena->token_count];
    return LOOM_OK;
}

static int send_locked(loom_arena *arena, struct map *map, uint32_t block, uint64_t offset, uint64_t size,
                       uint32_t receiver, loom_reference *out) {
    if (receiver != LOOM_ANY) {
        if (receiver >= LOOM_PARTICIPANTS) return LOOM_E_USAGE;
        uint64_t word = atomic_load_explicit(&arena->participants[receiver].word, memory_order_acquire);
        if (loom_word_state(word) != LOOM_PARTICIPANT_ACTIVE) return LOOM_E_ABSENT;
    }
    loom_tokens_poll_locked(arena, LOOM_POLL);
    uint32_t id;
    int code = token_take(arena, &id);
    if (code) return code;
    struct local_block *local = &map->local[block];
    struct loom_token *token = loom_token_at(arena, arena->me, id);
    uint64_t before = atomic_load_explicit(&token->word, memory_order_relaxed);
    uint64_t generation = ((before >> 24) + 1) & LOOM_TOKEN_GENERATION;
    atomic_store_explicit(&token->segment, map->index, memory_order_relaxed);
    atomic_store_explicit(&token->block, block, memory_order_relaxed);
    atomic_store_explicit(&token->block_generation, local->generation, memory_order_relaxed);
    LOOM_STEP(SEND_WRITTEN);
    uint64_t in_flight = loom_token_word(generation, receiver, LOOM_TOKEN_INFLIGHT);
    atomic_store_explicit(&token->word, in_flight, memory_order_release);
    LOOM_STEP(SEND_INFLIGHT);
    arena->tokens[id] = (struct own_token){map, generation, block, arena->flying_count};
    arena->flying[arena->flying_count++] = id;
    local->tokens++;
    loom_count(&arena->participants[arena->me].counters.references_sent, 1);
    *out = (loom_reference){map->index, block, local->generation, offset, size, arena->me, id, generation};
    return LOOM_OK;
}

int loom_arena_send(loom_arena *arena, const void *data, uint64_t size, uint32_t receiver, loom_reference *out) {
    struct map *map;
    uint32_t block;
    uint64_t offset;
    int code = loom_enter(arena);
    if (code) return code;
    code = LOOM_E_FOREIGN;
    if (loom_lookup_locked(arena, data, size, &map, &block, &offset))
        code = send_locked(arena, map, block, offset, size, receiver, out);
    if (!code) loom_count(&arena->participants[arena->me].counters.bytes_shared, size);
    loom_leave(arena);
    return code;
}

int loom_arena_hand_over(loom_view *view, uint32_t receiver, loom_reference *out) {
    loom_arena *arena = view->arena;
    if (!arena) return LOOM_E_CLOSED;
    int code = loom_enter(arena);
    if (code) return code;
    struct map *map = view->map;
    uint64_t offset = (uint64_t)(view->data - map->data) - map->local[view->block].offset;
    code = send_locked(arena, map, view->block, offset, view->size, receiver, out);
    if (!code) { /* the token stands behind the holder bit now, so it stays */
        loom_count(&arena->participants[arena->me].counters.bytes_copied, view->size);
        map->local[view->block].views--;
        arena->views--;
        view->arena = NULL;
    }
    loom_leave(arena);
    return code;
}

int loom_arena_recall(loom_arena *arena, const loom_reference *reference) {
    int code = loom_enter(arena);
    if (code) return code;
    code = LOOM_E_STALE;
    if (reference->sender == arena->me && reference->token < LOOM_TOKENS) {
        uint32_t id = (uint32_t)reference->token;
        const struct own_token *own = &arena->tokens[id];
        if (own->map && own->generation == reference->token_generation) {
            struct loom_token *token = loom_token_at(arena, arena->me, id);
            uint64_t word = atomic_load_explicit(&token->word, memory_order_acquire);
            uint64_t revoked = loom_token_word(own->generation, loom_word_who(word), LOOM_TOKEN_REVOKED);
            if (loom_word_state(word) == LOOM_TOKEN_INFLIGHT &&
                atomic_compare_exchange_strong_explicit(&token->word, &word, revoked, memory_order_acq_rel,
                                                        memory_order_acquire)) {
                LOOM_STEP(RECALL_REVOKED);
                code = LOOM_OK;
            }
            token_free(arena, id); /* whatever it is by now, it is resolved */
        }
    }
    loom_leave(arena);
    return code;
}

/* --- Receiver --------------------------------------------------------------------------------------------------- */

static int accept_locked(loom_arena *arena, const loom_reference *reference, loom_view *out) {
    uint32_t index = (uint32_t)reference->segment, block = (uint32_t)reference->block;
    uint32_t sender = (uint32_t)reference->sender, id = (uint32_t)reference->token;
    if (id >= loom_tokens_reserved(arena, sender)) return LOOM_E_STALE;
    int code = loom_tokens_ready_locked(arena, sender, id + 1);
    if (code) return code;
    struct loom_token *token = loom_token_at(arena, sender, id);
    uint64_t word = atomic_load_explicit(&token->word, memory_order_acquire);
    uint32_t receiver = loom_word_who(word);
    if (loom_word_state(word) != LOOM_TOKEN_INFLIGHT || word >> 24 != reference->token_generation ||
        (receiver != LOOM_ANY && receiver != arena->me) ||
        atomic_load_explicit(&token->segment, memory_order_relaxed) != index ||
        atomic_load_explicit(&token->block, memory_order_relaxed) != block ||
        atomic_load_explicit(&token->block_generation, memory_order_relaxed) != reference->generation)
        return LOOM_E_STALE;
    LOOM_STEP(ACCEPT_CHECKED);

    loom_maps_refresh_locked(arena);
    struct map *map = loom_map_find_locked(arena, index);
    if (!map) return LOOM_E_NOT_FOUND;
    LOOM_STEP(ACCEPT_MAPPED);
    if (block >= map->blocks) return LOOM_E_STALE;
    struct loom_block *shared = &map->descriptors[block];
    struct local_block *local = &map->local[block];
    bool held = local->views || local->tokens;
    uint64_t offset, size, generation;
    if (held || (map->own && local->leased)) { /* private knowledge is better than shared */
        offset = local->offset;
        size = local->size;
        generation = local->generation;
    } else {
        offset = atomic_load_explicit(&shared->offset, memory_order_relaxed);
        size = atomic_load_explicit(&shared->size, memory_order_relaxed);
        generation = atomic_load_explicit(&shared->generation, memory_order_relaxed);
        if (map->own) return LOOM_E_STALE;
    }
    if (generation != reference->generation || offset > map->data_size || size > map->data_size - offset ||
        reference->offset > size || reference->size > size - reference->offset)
        return LOOM_E_STALE;

    if (!held) {
        loom_bit_set(shared, arena->me);
        LOOM_STEP(ACCEPT_HELD);
        atomic_fetch_add_explicit(&shared->acquisitions, 1, memory_order_acq_rel);
        LOOM_STEP(ACCEPT_COUNTED);
    }
    uint64_t accepted = loom_token_word(reference->token_generation, receiver, LOOM_TOKEN_ACCEPTED);
    if (!atomic_compare_exchange_strong_explicit(&token->word, &word, accepted, memory_order_acq_rel,
                                                 memory_order_acquire)) {
        if (!held) loom_bit_clear(shared, arena->me);
        return LOOM_E_STALE;
    }
    LOOM_STEP(ACCEPT_ACCEPTED);
    if (!held) {
        local->offset = offset;
        local->size = size;
        local->generation = generation;
        loom_hold_begin_locked(map, block);
    }
    local->views++;
    arena->views++;
    loom_count(&arena->participants[arena->me].counters.references_accepted, 1);
    unsigned char *data = map->data + offset + reference->offset;
    *out = (loom_view){arena, map, data, reference->size, generation, index, block, 1};
    return LOOM_OK;
}

int loom_arena_accept(loom_arena *arena, const loom_reference *reference, loom_view *out) {
    out->arena = NULL;
    if (reference->segment >= LOOM_SEGMENTS || reference->block >= LOOM_BLOCKS_MAX ||
        reference->sender >= LOOM_PARTICIPANTS || reference->token >= LOOM_TOKENS ||
        reference->token_generation > LOOM_TOKEN_GENERATION) {
        return LOOM_E_STALE;
    }
    for (int attempt = 0;; attempt++) {
        int code = loom_enter(arena);
        if (code) return code;
        code = accept_locked(arena, reference, out);
        loom_leave(arena);
        if (code != LOOM_E_NOT_FOUND) return code;
        /* The segment is not mapped here. Maps are made without the mutex; by then another thread may have done
         * it. */
        if (attempt == 3) return LOOM_E_STALE;
        struct map *map;
        code = loom_segment_attach(arena, (uint32_t)reference->segment, &map);
        if (code) return code;
        code = loom_enter(arena);
        if (code) {
            loom_map_free(map);
            return code;
        }
        if (loom_map_find_locked(arena, map->index))
            loom_map_free(map);
        else if ((code = loom_map_adopt_locked(arena, map)))
            loom_map_free(map);
        loom_leave(arena);
        if (code) return code;
    }
}
