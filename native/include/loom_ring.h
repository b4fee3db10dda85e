/* loom_ring.h -- the shared-memory mailbox: this header is its specification.
 *
 * One file for each receiver. It has a lane for each participant of the arena: a ring for what the participant sends,
 * and a ring for what it is answered. A lane has exactly one writer and one reader in each direction, so nobody ever
 * waits for somebody else's half-written record: a sender that is killed, or stopped, between two instructions leaves
 * bytes that were never published, in a lane that only it writes to. What many senders share is a bitmap that says
 * which lanes have something.
 *
 * Conventions are those of loom_arena.h: fixed-width little-endian integers, offsets and no pointers, memory order with
 * each step. Sizes and positions that the other side writes are checked before they are used.
 *
 * File /dev/shm/<name>.inbox (mode 0600), sparse
 *   [0, 4096)                                     struct loom_inbox_head
 *   LOOM_LANES_OFFSET + lane * LOOM_LANE_SIZE     struct loom_lane_control, padded to a page; then the ring of
 *                                                 requests, LOOM_RING_SIZE bytes; then that of answers
 *   The lane's number is the sender's participant index. Whoever opens a lane reserves its pages (posix_fallocate)
 *   first, and so does the receiver before it first looks at one: nobody meets a hole, so a full /dev/shm is a return
 *   code and never a SIGBUS.
 *
 * Bells
 *   Both sides sleep on a FIFO: the receiver on <bells>.bell, the sender of a lane on <bells>.<lane>. A byte in it means
 *   "look". It is rung only for who sleeps; both ends open it read-write and non-blocking, so that ringing never
 *   blocks, never raises SIGPIPE, and a full one is as good as rung.
 *
 * Records
 *   A ring holds records: { uint32 size, uint32 kind }, then `size` bytes, padded to a multiple of 8. Kind
 *   LOOM_RECORD_DATA is a message; LOOM_RECORD_PAD says that the next record is at the ring's start. `head` and `tail`
 *   count bytes and never wrap; a position in the ring is the count modulo LOOM_RING_SIZE. A record is never larger
 *   than half a ring, so that there is room for it as soon as the ring is empty.
 *
 * Sending (only the lane's sender; for answers only the receiver)
 *   1. room: LOOM_RING_SIZE - (tail - head), head read with acquire. None: see Waiting for room.
 *   2. write the record; store tail (release).
 *   3. requests: set the lane's bit in `ready` (fetch_or, seq_cst); then, if `sleeping` is odd (seq_cst), ring the
 *      receiver's bell, and after that CAS `sleeping` to the next number. In this order a sender that is killed
 *      between the two leaves a receiver that is rung twice, not one that is never rung; and as the number is another
 *      one for each sleep, a late CAS does not touch the next.
 *      answers: a seq_cst fence; then, if the lane's `sender_sleeping` is 1, exchange it for 0 and ring the sender's
 *      bell. A receiver that is killed between the two is dead, and of that its senders hear otherwise.
 *
 * Receiving requests
 *   1. exchange a word of `ready` for 0 (seq_cst): those lanes are the receiver's to look at, until it has read each up
 *      to its tail.
 *   2. read tail (acquire); read the record; store head (release): from now on the message is the receiver's, and a
 *      receiver that is killed has begun none that it has not taken.
 *   3. after a lane was read to the end, or reading is given up for now: a seq_cst fence; if `sender_waits` is 1,
 *      exchange it for 0 and ring the sender's bell.
 *   To sleep: store the next odd number in `sleeping` (seq_cst), look at all of `ready` once more (seq_cst), and only
 *   then wait. A sender sets its bit before it reads `sleeping`: one of the two sees the other. Awake: store the next
 *   even number.
 *   Receiving answers is the same with one lane: `sender_sleeping` 1 or 0, then one more look at the tail.
 *   native/tests/model_ring.py checks all this in every interleaving of small cases, deaths included.
 *
 * Waiting for room
 *   The side that finds no room stores `sender_waits` (requests) or `receiver_waits` (answers) 1 (seq_cst), looks once
 *   more, and sleeps on its bell. The other side rings it as above when it has made room. A receiver that waits for
 *   room also sleeps by `sleeping`, and is rung as for a message.
 *
 * Who comes after whom
 *   A receiver's file dies with it: a new incarnation has a new one. A lane's sender may die and another process may
 *   get its participant index: it goes on where the counts are, and answers to calls of its predecessor are answers to
 *   nobody. `session` goes up by one for each sender that opens the lane: the receiver opens the bell anew.
 *   What a dead receiver has not taken is still there: its sender reads it back (loom_lane_unread) and knows exactly
 *   what was never begun.
 *
 * Threads: calls on one handle must not overlap; the caller sees to that.
 */
#ifndef LOOM_RING_H
#define LOOM_RING_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#define LOOM_INBOX_MAGIC UINT64_C(0x31424e494d4f4f4c) /* the bytes "LOOMINB1" */
#define LOOM_INBOX_VERSION 1u
#define LOOM_LANES 1024u
#define LOOM_LANES_OFFSET 4096u
#define LOOM_LANE_CONTROL 4096u
#define LOOM_RING_SIZE 32768u
#define LOOM_LANE_SIZE (LOOM_LANE_CONTROL + 2u * LOOM_RING_SIZE)
#define LOOM_INBOX_SIZE (LOOM_LANES_OFFSET + (uint64_t)LOOM_LANES * LOOM_LANE_SIZE)
#define LOOM_RECORD_HEADER 8u
#define LOOM_RECORD_MAX (LOOM_RING_SIZE / 2u - LOOM_RECORD_HEADER) /* bytes of one message */

enum loom_record_kind { LOOM_RECORD_DATA = 1, LOOM_RECORD_PAD = 2 };

struct loom_inbox_head {
    _Atomic uint64_t magic;    /* 0   LOOM_INBOX_MAGIC, stored last (release) */
    uint32_t version;          /* 8 */
    uint32_t lanes;            /* 12  LOOM_LANES */
    uint32_t lane_size;        /* 16  LOOM_LANE_SIZE */
    uint32_t ring_size;        /* 20  LOOM_RING_SIZE */
    uint64_t reserved0[5];
    _Atomic uint32_t sleeping; /* 64  odd while the receiver waits at its bell and nobody has rung it */
    uint32_t reserved1[15];
    _Atomic uint64_t ready[LOOM_LANES / 64]; /* 128  lane p is bit p % 64 of word p / 64 */
    uint64_t reserved2[480];
};

struct loom_lane_control {
    _Atomic uint64_t request_tail;    /* 0    the sender's */
    _Atomic uint64_t answer_head;     /* 8    the sender's */
    uint64_t reserved0[6];
    _Atomic uint64_t request_head;    /* 64   the receiver's */
    _Atomic uint64_t answer_tail;     /* 72   the receiver's */
    uint64_t reserved1[6];
    _Atomic uint32_t sender_sleeping; /* 128 */
    _Atomic uint32_t sender_waits;    /* 132 */
    _Atomic uint32_t receiver_waits;  /* 136 */
    uint32_t reserved2[13];
    _Atomic uint64_t session;         /* 192  how many senders have opened the lane */
    _Atomic uint64_t sender;          /* 200  pid of the present one, 0 when it has closed the lane */
    _Atomic uint64_t sender_start;    /* 208  its start time, clock ticks since boot */
    uint64_t reserved3[485];
};

#define LOOM_FROZEN(type, field, at) _Static_assert(offsetof(struct type, field) == (at), #type "." #field " moved")
_Static_assert(ATOMIC_LLONG_LOCK_FREE == 2 && ATOMIC_INT_LOCK_FREE == 2, "atomics must be lock-free");
_Static_assert(sizeof(struct loom_inbox_head) == LOOM_LANES_OFFSET, "loom_inbox_head");
_Static_assert(sizeof(struct loom_lane_control) == LOOM_LANE_CONTROL, "loom_lane_control");
LOOM_FROZEN(loom_inbox_head, magic, 0);
LOOM_FROZEN(loom_inbox_head, version, 8);
LOOM_FROZEN(loom_inbox_head, lanes, 12);
LOOM_FROZEN(loom_inbox_head, lane_size, 16);
LOOM_FROZEN(loom_inbox_head, ring_size, 20);
LOOM_FROZEN(loom_inbox_head, sleeping, 64);
LOOM_FROZEN(loom_inbox_head, ready, 128);
LOOM_FROZEN(loom_lane_control, request_tail, 0);
LOOM_FROZEN(loom_lane_control, answer_head, 8);
LOOM_FROZEN(loom_lane_control, request_head, 64);
LOOM_FROZEN(loom_lane_control, answer_tail, 72);
LOOM_FROZEN(loom_lane_control, sender_sleeping, 128);
LOOM_FROZEN(loom_lane_control, sender_waits, 132);
LOOM_FROZEN(loom_lane_control, receiver_waits, 136);
LOOM_FROZEN(loom_lane_control, session, 192);
LOOM_FROZEN(loom_lane_control, sender, 200);
LOOM_FROZEN(loom_lane_control, sender_start, 208);
#undef LOOM_FROZEN

/* --- Return codes ----------------------------------------------------------------------------------------------- */

enum loom_ring_code {
    LOOM_RING_OK = 0,
    LOOM_RING_EMPTY = 1,       /* nothing there now */
    LOOM_RING_FULL = -1,       /* no room now; or, of open and create, no pages left in /dev/shm */
    LOOM_RING_LARGE = -2,      /* more than LOOM_RECORD_MAX bytes: never fits */
    LOOM_RING_CORRUPT = -3,    /* what the other side wrote contradicts itself: the lane is closed */
    LOOM_RING_NOT_FOUND = -4,  /* no such mailbox file */
    LOOM_RING_DENIED = -5,     /* it is another user's, or open to others */
    LOOM_RING_USAGE = -6,      /* a bad name or lane */
    LOOM_RING_OS = -7,         /* a system call failed: errno says how */
    LOOM_RING_MEMORY = -8,     /* malloc failed */
    LOOM_RING_NOBODY = -9      /* answer: nobody has that lane open */
};

const char *loom_ring_text(int code); /* one English sentence without a full stop; never NULL */

/* --- The receiver ----------------------------------------------------------------------------------------------- */

typedef struct loom_inbox loom_inbox;

/* Make /dev/shm/<name>.inbox and the FIFO <bells>.bell. An existing FIFO is used, an existing file is OS with EEXIST.
 * OK, USAGE, FULL, OS, MEMORY. */
int loom_inbox_create(const char *name, const char *bells, loom_inbox **out);

/* Unmap, close, and unlink both. */
void loom_inbox_close(loom_inbox *mailbox);

int loom_inbox_bell(const loom_inbox *mailbox); /* to wait on: readable means wake() and look */

/* The next message, and whose it is. `data` points into the ring: copy, then call loom_inbox_take.
 * OK, EMPTY, CORRUPT (that lane is not looked at again; `lane` says which), FULL or OS (no page for that lane). */
int loom_inbox_next(loom_inbox *mailbox, uint32_t *lane, const void **data, uint32_t *size);

/* The message that `next` has shown is the receiver's now. */
void loom_inbox_take(loom_inbox *mailbox);

/* Stop looking for now: tell waiting senders about the room made so far. */
void loom_inbox_pause(loom_inbox *mailbox);

/* Write an answer. OK, FULL (rings the own bell when there is room again), LARGE, NOBODY, CORRUPT, USAGE, OS. */
int loom_inbox_answer(loom_inbox *mailbox, uint32_t lane, const void *data, uint32_t size);

/* 1 when a sender has announced something: for spinning. */
int loom_inbox_ready(const loom_inbox *inbox);

/* Whether the process that opened a lane lives, and has it open: 1 or 0. Reads /proc: not for every message. */
int loom_inbox_reaches(loom_inbox *mailbox, uint32_t lane);

/* Get ready to sleep: 1 when there is nothing to look at, and whatever comes now rings the bell; 0 when there is. */
int loom_inbox_rest(loom_inbox *mailbox);

/* Awake again: no bell wanted; empties it. */
void loom_inbox_wake(loom_inbox *mailbox);

/* --- The sender ------------------------------------------------------------------------------------------------- */

typedef struct loom_lane loom_lane;

/* Open one's lane of a mailbox, `lane` being one's participant index; makes the FIFO <bells>.<lane>.
 * OK, NOT_FOUND, DENIED, CORRUPT, FULL, USAGE, OS, MEMORY. */
int loom_lane_open(const char *name, const char *bells, uint32_t lane, loom_lane **out);

/* Unmap, close, unlink the FIFO. The lane's content stays for its receiver. */
void loom_lane_close(loom_lane *lane);

int loom_lane_bell(const loom_lane *lane);

/* Send a message. OK, FULL (rings the own bell when there is room again), LARGE, CORRUPT. */
int loom_lane_send(loom_lane *lane, const void *data, uint32_t size);

/* The next answer, and done with it: as for the receiver. OK, EMPTY, CORRUPT. */
int loom_lane_next(loom_lane *lane, const void **data, uint32_t *size);
void loom_lane_take(loom_lane *lane);
void loom_lane_pause(loom_lane *lane);

/* As for the receiver; but waking leaves `sender_sleeping` as it is, for other threads may sleep by it. At worst the bell
 * is rung once in vain. */
int loom_lane_rest(loom_lane *lane);
void loom_lane_wake(loom_lane *lane);

/* 1 when an answer is there. Reads shared words only, so that it may overlap with the other calls: for spinning. */
int loom_lane_ready(const loom_lane *lane);

/* What was sent and not taken, one after the other: start with *at = 0. OK, EMPTY (that was all), CORRUPT. Only when
 * the receiver is dead does it stay true. */
int loom_lane_unread(loom_lane *lane, uint64_t *at, const void **data, uint32_t *size);

/* Remove the file of a dead receiver: /dev/shm/<name>.inbox. OK, USAGE, OS. */
int loom_inbox_remove(const char *name);

/* --- Named steps, for crash tests ------------------------------------------------------------------------------- */

#define LOOM_RING_STEPS(X)                                                                                           \
    X(OPEN_RESERVED) X(OPEN_SESSION)                                                                                 \
    X(SEND_PADDED) X(SEND_WRITTEN) X(SEND_PUBLISHED) X(SEND_READY) X(SEND_RUNG) X(SEND_SAID)                         \
    X(NEXT_CLAIMED) X(NEXT_SHOWN) X(TAKE_TAKEN) X(PAUSE_WOKEN) X(REST_SET)                                           \
    X(ANSWER_WRITTEN) X(ANSWER_PUBLISHED) X(ANSWER_WOKEN) X(ANSWER_RUNG)

enum loom_ring_step {
#define LOOM_STEP_ENUM(name) LOOM_RING_STEP_##name,
    LOOM_RING_STEPS(LOOM_STEP_ENUM)
#undef LOOM_STEP_ENUM
    LOOM_RING_STEP_COUNT
};

extern void (*loom_ring_step_hook)(int step); /* NULL outside tests */
const char *loom_ring_step_name(int step);    /* "send_written"; NULL when out of range */

#endif
