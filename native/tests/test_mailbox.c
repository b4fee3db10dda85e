/* test_mailbox.c -- the gate of a mailbox: terms, the bound, tickets that are void, and many threads at one gate. */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdint.h>

#include "check.h"
#include "loom_mailbox.h"

static uint64_t board[2 * LOOM_BOARD_WORDS], ledger[2 * LOOM_LEDGER_SLOTS * LOOM_LEDGER_WORDS];
static loom_mailboxes all = {board, ledger, 2};

enum { SENDERS = 4, EACH = 20000, BOUND = 64 };
static uint64_t tickets[SENDERS];
static uint64_t arrived[SENDERS]; /* messages that are in the socket, so to speak */

static void *send_all(void *argument) {
    uint64_t self = (uint64_t)(uintptr_t)argument;
    for (int sent = 0; sent < EACH;) {
        int code = loom_gate_admit(&all, 1, 9, tickets[self], 0);
        CHECK(code == LOOM_GATE_OPEN || code == LOOM_GATE_FULL);
        if (code == LOOM_GATE_OPEN) {
            __atomic_fetch_add(&arrived[self], 1, __ATOMIC_SEQ_CST);
            sent++;
        }
    }
    return NULL;
}

static void many_senders(void) {
    uint64_t count, left = 0;
    pthread_t threads[SENDERS];
    loom_gate_seal(&all, 1, 9, &count);
    board[LOOM_BOARD_WORDS + LOOM_WORD_BOUND] = BOUND;
    for (uint64_t i = 0; i < SENDERS; i++) CHECK(!loom_gate_open(&all, 1, 9, 100 + i, &tickets[i]));
    for (uint64_t i = 0; i < SENDERS; i++) CHECK(!pthread_create(&threads[i], NULL, send_all, (void *)(uintptr_t)i));
    while (left < (uint64_t)SENDERS * EACH) {
        uint64_t gate = __atomic_load_n(&board[LOOM_BOARD_WORDS + LOOM_WORD_GATE], __ATOMIC_SEQ_CST);
        CHECK((gate & LOOM_GATE_MASK) - left <= BOUND);
        for (uint64_t i = 0; i < SENDERS; i++) {
            if (!__atomic_load_n(&arrived[i], __ATOMIC_SEQ_CST)) continue;
            __atomic_fetch_sub(&arrived[i], 1, __ATOMIC_SEQ_CST);
            CHECK(loom_gate_leave(&all, 1, tickets[i]) == LOOM_GATE_OPEN);
            left++;
        }
    }
    for (uint64_t i = 0; i < SENDERS; i++) CHECK(!pthread_join(threads[i], NULL));
    loom_gate_seal(&all, 1, 0, &count);
    CHECK(count == (uint64_t)SENDERS * EACH && board[LOOM_BOARD_WORDS + LOOM_WORD_LEFT] == count);
    for (uint64_t i = 0; i < SENDERS; i++) CHECK(loom_gate_release(&all, 1, tickets[i]) == LOOM_GATE_OPEN);
}

static void one_sender(void) {
    uint64_t ticket, other, count, begun, sent, next;
    CHECK(loom_gate_open(&all, 0, 5, 7, &ticket) == LOOM_GATE_STALE); /* no mailbox yet */
    CHECK(loom_gate_seal(&all, 0, 5, &count) == LOOM_GATE_OPEN && count == 0);
    board[LOOM_WORD_BOUND] = 3;
    CHECK(loom_gate_open(&all, 0, 4, 7, &ticket) == LOOM_GATE_STALE);
    CHECK(loom_gate_open(&all, 0, 5, 7, &ticket) == LOOM_GATE_OPEN);
    CHECK(loom_gate_leave(&all, 0, ticket) == LOOM_GATE_NONE); /* nothing was let in */
    for (int i = 0; i < 3; i++) CHECK(loom_gate_admit(&all, 0, 5, ticket, 0) == LOOM_GATE_OPEN);
    CHECK(loom_gate_admit(&all, 0, 5, ticket, 0) == LOOM_GATE_FULL);
    CHECK(loom_gate_admit(&all, 0, 5, ticket, 4) == LOOM_GATE_OPEN);
    CHECK(loom_gate_admit(&all, 0, 6, ticket, 0) == LOOM_GATE_STALE);
    CHECK(loom_gate_leave(&all, 0, ticket) == LOOM_GATE_OPEN);
    CHECK(loom_gate_begun(&all, 0, ticket, &begun) == LOOM_GATE_OPEN && begun == 1);
    CHECK(loom_gate_void(&all, 0, ticket, 1, &begun, &sent, &next) == LOOM_GATE_OPEN && begun == 1 && sent == 4);
    CHECK(board[LOOM_WORD_MOVED] == 3 && board[LOOM_WORD_LEFT] == 4);
    CHECK(loom_gate_leave(&all, 0, ticket) == LOOM_GATE_STALE);
    CHECK(loom_gate_void(&all, 0, ticket, 1, &begun, &sent, &next) == LOOM_GATE_STALE);
    CHECK(loom_gate_admit(&all, 0, 5, next, 0) == LOOM_GATE_OPEN && loom_gate_leave(&all, 0, next) == LOOM_GATE_OPEN);
    CHECK(loom_gate_admit(&all, 0, 5, next, 0) == LOOM_GATE_OPEN);
    CHECK(loom_gate_release(&all, 0, next) == LOOM_GATE_FULL); /* one has not begun: the node's to settle */
    CHECK(loom_gate_open(&all, 0, 5, 8, &other) == LOOM_GATE_OPEN && (other & 0xffff) != (next & 0xffff));
    CHECK(loom_gate_seal(&all, 0, 0, &count) == LOOM_GATE_OPEN && count == 6);
    CHECK(loom_gate_admit(&all, 0, 5, other, 0) == LOOM_GATE_STALE);
    CHECK(loom_gate_reset(&all, 0) == LOOM_GATE_OPEN);
    CHECK(loom_gate_leave(&all, 0, next) == LOOM_GATE_STALE);
    CHECK(loom_gate_admit(&all, 2, 5, other, 0) != LOOM_GATE_OPEN && loom_gate_leave(&all, 0, 0) == LOOM_GATE_NONE);
    CHECK(loom_gate_leave(&all, 0, LOOM_LEDGER_SLOTS + 1) == LOOM_GATE_NONE);
}

int main(void) {
    one_sender();
    many_senders();
    return 0;
}
