/* mailbox_gate.c -- see loom_mailbox.h */
#include "loom_mailbox.h"

#include <stddef.h>

enum { OWNER, SENT, STATE };

static uint64_t load(const uint64_t *word) { return __atomic_load_n(word, __ATOMIC_SEQ_CST); }
static void store(uint64_t *word, uint64_t value) { __atomic_store_n(word, value, __ATOMIC_SEQ_CST); }
static int swap(uint64_t *word, uint64_t *expected, uint64_t value) {
    return __atomic_compare_exchange_n(word, expected, value, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
}

static uint64_t *row_of(const loom_mailboxes *all, uint64_t row) { return all->board + row * LOOM_BOARD_WORDS; }

static uint64_t *slot_at(const loom_mailboxes *all, uint64_t row, uint64_t slot) {
    return all->ledger + (row * LOOM_LEDGER_SLOTS + slot) * LOOM_LEDGER_WORDS;
}

static uint64_t *slot_of(const loom_mailboxes *all, uint64_t row, uint64_t ticket) {
    uint64_t slot = ticket & 0xffff;
    return row < all->rows && slot && slot <= LOOM_LEDGER_SLOTS ? slot_at(all, row, slot - 1) : NULL;
}

static uint64_t epoch_of(uint64_t state) { return state >> LOOM_GATE_BITS; }
static uint64_t next_epoch(uint64_t state) { return ((state >> LOOM_GATE_BITS) + 1) << LOOM_GATE_BITS; }
static uint64_t ticket_of(uint64_t state, uint64_t slot) { return epoch_of(state) << 16 | (slot + 1); }

int loom_gate_open(const loom_mailboxes *all, uint64_t row, uint64_t term, uint64_t owner, uint64_t *ticket) {
    if (row >= all->rows || !owner) return LOOM_GATE_NONE;
    if (!term || load(row_of(all, row) + LOOM_WORD_GATE) >> LOOM_GATE_BITS != term) return LOOM_GATE_STALE;
    for (uint64_t slot = 0; slot < LOOM_LEDGER_SLOTS; slot++) {
        uint64_t *found = slot_at(all, row, slot), nobody = 0;
        if (load(found + OWNER) || !swap(found + OWNER, &nobody, owner)) continue;
        uint64_t state = next_epoch(load(found + STATE));
        store(found + SENT, 0);
        store(found + STATE, state);
        *ticket = ticket_of(state, slot);
        return LOOM_GATE_OPEN;
    }
    return LOOM_GATE_NONE;
}

int loom_gate_admit(const loom_mailboxes *all, uint64_t row, uint64_t term, uint64_t ticket, uint64_t at_most) {
    uint64_t *slot = slot_of(all, row, ticket);
    if (!slot) return LOOM_GATE_STALE; /* never opened, or closed */
    uint64_t *words = row_of(all, row);
    uint64_t gate = load(words + LOOM_WORD_GATE);
    do {
        if (gate >> LOOM_GATE_BITS != term) return LOOM_GATE_STALE;
        uint64_t accepted = (gate & LOOM_GATE_MASK) + load(words + LOOM_WORD_UNGATED);
        int64_t waiting = (int64_t)(accepted - load(words + LOOM_WORD_LEFT));
        uint64_t bound = at_most ? at_most : load(words + LOOM_WORD_BOUND);
        if (waiting > 0 && (uint64_t)waiting >= bound) return LOOM_GATE_FULL;
    } while (!swap(words + LOOM_WORD_GATE, &gate, gate + 1));
    store(slot + SENT, load(slot + SENT) + 1);
    return LOOM_GATE_OPEN;
}

int loom_gate_leave(const loom_mailboxes *all, uint64_t row, uint64_t ticket) {
    uint64_t *slot = slot_of(all, row, ticket);
    if (!slot) return LOOM_GATE_NONE;
    uint64_t state = load(slot + STATE);
    do {
        if (epoch_of(state) != ticket >> 16) return LOOM_GATE_STALE;
        if ((state & LOOM_GATE_MASK) >= load(slot + SENT)) return LOOM_GATE_NONE; /* SENT is written before it is sent */
    } while (!swap(slot + STATE, &state, state + 1));
    __atomic_fetch_add(row_of(all, row) + LOOM_WORD_LEFT, 1, __ATOMIC_SEQ_CST);
    return LOOM_GATE_OPEN;
}

int loom_gate_void(const loom_mailboxes *all, uint64_t row, uint64_t ticket, int moved, uint64_t *begun, uint64_t *sent,
                   uint64_t *next) {
    uint64_t *slot = slot_of(all, row, ticket);
    if (!slot) return LOOM_GATE_NONE;
    uint64_t state = load(slot + STATE);
    *sent = load(slot + SENT);
    do {
        if (epoch_of(state) != ticket >> 16) return LOOM_GATE_STALE;
    } while (!swap(slot + STATE, &state, next_epoch(state) | *sent));
    *begun = state & LOOM_GATE_MASK;
    *next = ticket_of(next_epoch(state), (ticket & 0xffff) - 1);
    if (moved && *sent > *begun) {
        __atomic_fetch_add(row_of(all, row) + LOOM_WORD_MOVED, *sent - *begun, __ATOMIC_SEQ_CST);
        __atomic_fetch_add(row_of(all, row) + LOOM_WORD_LEFT, *sent - *begun, __ATOMIC_SEQ_CST);
    }
    return LOOM_GATE_OPEN;
}

int loom_gate_begun(const loom_mailboxes *all, uint64_t row, uint64_t ticket, uint64_t *begun) {
    const uint64_t *slot = slot_of(all, row, ticket);
    if (!slot) return LOOM_GATE_NONE;
    uint64_t state = load(slot + STATE);
    if (epoch_of(state) != ticket >> 16) return LOOM_GATE_STALE;
    *begun = state & LOOM_GATE_MASK;
    return LOOM_GATE_OPEN;
}

int loom_gate_release(const loom_mailboxes *all, uint64_t row, uint64_t ticket) {
    uint64_t *slot = slot_of(all, row, ticket);
    if (!slot) return LOOM_GATE_NONE;
    uint64_t state = load(slot + STATE);
    if (epoch_of(state) != ticket >> 16) return LOOM_GATE_STALE;
    if ((state & LOOM_GATE_MASK) < load(slot + SENT)) {
        store(slot + OWNER, LOOM_NOBODY);
        return LOOM_GATE_FULL;
    }
    if (!swap(slot + STATE, &state, next_epoch(state))) return LOOM_GATE_STALE;
    store(slot + OWNER, 0);
    return LOOM_GATE_OPEN;
}

int loom_gate_seal(const loom_mailboxes *all, uint64_t row, uint64_t term, uint64_t *count) {
    if (row >= all->rows) return LOOM_GATE_NONE;
    uint64_t *word = row_of(all, row) + LOOM_WORD_GATE, gate = load(word);
    while (!swap(word, &gate, term << LOOM_GATE_BITS | (gate & LOOM_GATE_MASK))) continue;
    *count = gate & LOOM_GATE_MASK;
    return LOOM_GATE_OPEN;
}

int loom_gate_reset(const loom_mailboxes *all, uint64_t row) {
    if (row >= all->rows) return LOOM_GATE_NONE;
    for (uint64_t number = 0; number < LOOM_LEDGER_SLOTS; number++) {
        uint64_t *slot = slot_at(all, row, number);
        if (!load(slot + OWNER)) continue;
        store(slot + STATE, next_epoch(load(slot + STATE)));
        store(slot + OWNER, 0);
    }
    return LOOM_GATE_OPEN;
}

int loom_gate_add(const loom_mailboxes *all, uint64_t row, uint64_t word, uint64_t by) {
    if (row >= all->rows || word >= LOOM_BOARD_WORDS) return LOOM_GATE_NONE;
    __atomic_fetch_add(row_of(all, row) + word, by, __ATOMIC_SEQ_CST);
    return LOOM_GATE_OPEN;
}
