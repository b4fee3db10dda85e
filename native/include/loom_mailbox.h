/* loom_mailbox.h -- the gate of a mailbox: who may send to it, how much waits in it, and what became of what was sent.
 *
 * Two files in /dev/shm, made by the node: ARENA.board, a row of 32 words for each actor, and ARENA.ledger, a row of
 * LOOM_LEDGER_SLOTS slots for each actor. All words are 64-bit, little-endian, and touched by the atomics below only
 * when they have several writers.
 *
 * The gate. The word GATE of a row is TERM << 40 | COUNT. The term is the number of the present mailbox, never used twice
 * on a node, and 0 while there is none; the count is that of all messages let in since the row was taken. A sender adds
 * one to the count in the same step that compares the term, so a message is let in to exactly one incarnation, or to
 * none; and the node, which closes the gate with one more such step, knows the number of those that it has to account
 * for, wherever they were at that moment: with the sender, in a socket, or in the actor.
 *
 *     accepted = COUNT + UNGATED        UNGATED: what the actor was sent past the gate, by those who know of none
 *     waiting  = accepted - LEFT        LEFT: what has begun, or has ended without beginning
 *
 * Nobody is let in while `waiting` has reached the bound (word BOUND), so that is the most that can wait, in all places
 * together.
 *
 * The ledger. A slot belongs to one sending process and one mailbox:
 *
 *     OWNER   pid << 32 | low 32 bits of its start time; 0 when the slot is free
 *     SENT    messages let in; written by the owner alone
 *     STATE   EPOCH << 40 | BEGUN: how many of these have left the mailbox's queue, in the order they were sent
 *     (one word is free)
 *
 * A message carries its ticket, EPOCH << 16 | (slot + 1). Before an actor begins it, it adds one to BEGUN in the same
 * step that compares the epoch. Whoever raises the epoch (the sender that takes back what has not begun, the node that
 * buries) learns in that step how many had begun, and none of the others ever will: its ticket is void.
 *
 * Memory order: every read-modify-write is sequentially consistent. A process that is killed between the two words that
 * letting in touches (GATE, then SENT) leaves SENT one short; nothing but the figures of that one slot suffers.
 */
#ifndef LOOM_MAILBOX_H
#define LOOM_MAILBOX_H

#include <stdint.h>

#define LOOM_BOARD_WORDS 32u
#define LOOM_WORD_LEFT 4u
#define LOOM_WORD_UNGATED 7u
#define LOOM_WORD_GATE 14u
#define LOOM_WORD_BOUND 15u
#define LOOM_WORD_MOVED 16u

#define LOOM_LEDGER_SLOTS 256u
#define LOOM_LEDGER_WORDS 4u
#define LOOM_LEDGER_ROW_BYTES (LOOM_LEDGER_SLOTS * LOOM_LEDGER_WORDS * 8u)

#define LOOM_GATE_BITS 40u
#define LOOM_GATE_MASK ((UINT64_C(1) << LOOM_GATE_BITS) - 1)

#define LOOM_NOBODY 1u /* an OWNER: pid 0, so no process */

enum {
    LOOM_GATE_OPEN = 0,  /* let in */
    LOOM_GATE_FULL = 1,  /* as much waits as may */
    LOOM_GATE_STALE = 2, /* another incarnation, or none, or a ticket that is void */
    LOOM_GATE_NONE = 3,  /* no slot is free, or no such row or slot */
};

typedef struct {
    uint64_t *board, *ledger;
    uint64_t rows;
} loom_mailboxes;

/* Take a slot for `owner`; its ticket in *ticket. OPEN, STALE, NONE. */
int loom_gate_open(const loom_mailboxes *all, uint64_t row, uint64_t term, uint64_t owner, uint64_t *ticket);

/* Let one message in. `at_most`: 0 for the mailbox's own bound, else another. OPEN, FULL, STALE (ticket 0, too). */
int loom_gate_admit(const loom_mailboxes *all, uint64_t row, uint64_t term, uint64_t ticket, uint64_t at_most);

/* One message leaves the queue, to begin or to end. OPEN; STALE when its ticket is void; NONE when it never was one, or
 * more have come with it than were let in. */
int loom_gate_leave(const loom_mailboxes *all, uint64_t row, uint64_t ticket);

/* Make a slot's ticket void; how many had begun, and were sent, in *begun and *sent. With `moved`, those that had not
 * are counted as LEFT and as MOVED. The slot stays the owner's, with the new ticket in *next. OPEN, STALE, NONE. */
int loom_gate_void(const loom_mailboxes *all, uint64_t row, uint64_t ticket, int moved, uint64_t *begun, uint64_t *sent,
                   uint64_t *next);

/* How many of a slot's messages have left the queue. OPEN, STALE, NONE. */
int loom_gate_begun(const loom_mailboxes *all, uint64_t row, uint64_t ticket, uint64_t *begun);

/* Give a slot back. When not all that was sent by it has left the queue, its owner is LOOM_NOBODY from now on, and the
 * node settles it as it does for owners that are dead. OPEN, FULL in that case, STALE, NONE. */
int loom_gate_release(const loom_mailboxes *all, uint64_t row, uint64_t ticket);

/* The node: replace the term, 0 to close; the count in *count. OPEN, NONE. */
int loom_gate_seal(const loom_mailboxes *all, uint64_t row, uint64_t term, uint64_t *count);

/* The node: free every slot of a row, tickets void. OPEN, NONE. */
int loom_gate_reset(const loom_mailboxes *all, uint64_t row);

/* Add to a word that has several writers. OPEN, NONE. */
int loom_gate_add(const loom_mailboxes *all, uint64_t row, uint64_t word, uint64_t by);

#endif
