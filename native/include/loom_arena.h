/* loom_arena.h -- the shared-memory arena: this header is its specification.
 *
 * An arena is what the processes of one node share: a set of memory-mapped files under /dev/shm in which tensors
 * lie, and one control file that says who holds what. A program in any language that can map a file, add to a 64-bit
 * word atomically and follow the steps below can read a tensor that a Python actor sent, without copying it.
 *
 * Conventions
 *   All integers are fixed-width, little-endian, naturally aligned. There are no pointers in shared memory, only
 *   indices and offsets. Fields marked _Atomic are read and written by several processes; the memory order each step
 *   needs is given with the step. "Relaxed" is meant where none is given. Every other field is written once, before
 *   it can be seen.
 *   Linux on a 64-bit machine is required: tmpfs, posix_fallocate, MADV_WIPEONFORK (4.14), lock-free 64-bit atomics.
 *   All processes must see the same /proc (one PID namespace), since a process is known by (pid, start time).
 *
 * Files (mode 0600; a file owned by another user, or open to others, is refused)
 *   /dev/shm/<name>.ctl         the control file, mapped read-write by everyone
 *   /dev/shm/<name>.<sequence>  one per segment, decimal: a control part (read-write for all), then the data part
 *                               (read-write for the owner, mapped from a read-only descriptor by everybody else)
 *   <spill>/<sequence>          likewise, one per segment that found no room in memory; <spill> is a folder that the
 *                               control file names, see "Spilling"
 *   <name> matches [A-Za-z0-9_-]{1,LOOM_NAME_MAX}. Pages are reserved (posix_fallocate) before anything touches
 *   them, so running out of memory is the return code LOOM_E_FULL and never a SIGBUS.
 *
 * Layout of the control file
 *   [0, 4096)                   struct loom_control
 *   LOOM_PARTICIPANTS_OFFSET    struct loom_participant[LOOM_PARTICIPANTS]
 *   LOOM_SEGMENTS_OFFSET        struct loom_segment_entry[LOOM_SEGMENTS]
 *   LOOM_TOKENS_OFFSET          struct loom_token[LOOM_PARTICIPANTS][LOOM_TOKENS]; sparse: a participant reserves
 *                               its table page by page, `tokens_reserved` says how far. Whoever reads another's
 *                               table first reserves the same range itself (it costs nothing when it is there), and
 *                               so never faults.
 *
 * Layout of a segment file
 *   [0, 256)                    struct loom_segment
 *   [256, data_offset)          struct loom_block[blocks], padded to a page
 *   [data_offset, +data_size)   the data; blocks start at multiples of 64 bytes
 *
 * Participants
 *   A process takes part under an index: row 0 is the node's, the others are claimed. `word` = generation << 32 |
 *   pid << 8 | state. Claim: CAS (acq_rel) FREE -> CLAIMING with the own pid, store start_time, store ACTIVE
 *   (release). Slots are freed by their user at a clean close, or by the node's reap after death; the generation
 *   then goes up by one.
 *
 * Segments, and the budget
 *   An entry's `word` = generation << 24 | owner << 8 | state. Create: CAS FREE -> CREATING, store size (seq_cst),
 *   sum the sizes of the whole table (seq_cst); if the sum is over the budget store size 0 and FREE again: that is
 *   LOOM_E_FULL. Both sides of a race may lose; neither can pass. Then store the sequence, make the file, reserve,
 *   initialise, store LIVE (release). The sequence is in the entry before the file exists, so no kill can leave a
 *   file that nothing names.
 *   Give back: LIVE -> CLOSING (seq_cst), punch the data part out (mappings may outlive the name; their memory must
 *   not), unlink, clear sequence and size, epoch + 1 (release), FREE with the next generation (release). The control
 *   part is never punched or truncated: a late reader of it finds plain memory.
 *   The budget counts data parts. Bookkeeping comes on top: under 2.5 % of the data, 4 KiB to 64 KiB of tokens for
 *   each participant, and LOOM_TOKENS_OFFSET bytes for the tables.
 *   Only the owner allocates in a segment, from metadata in its own private memory: no lock is shared between
 *   processes.
 *   The segment of a dead owner is ORPHANED: nothing is allocated in it, and the node removes it once nobody holds a
 *   block.
 *
 * When there is no room
 *   The control file says what the arena's users do then: wait for room (LOOM_FULL_WAIT; for `wait_ns`, or until the
 *   deadline of the message), fail at once (LOOM_FULL_RAISE), or spill. The core itself never waits, it spills.
 *
 * Spilling
 *   With LOOM_FULL_SPILL a lease for which there is no room in memory, by the budget or by /dev/shm, is served from a
 *   segment whose file lies in the folder <spill>: slower, and otherwise like any other. Such an entry has its bytes in
 *   `spilled` and 0 in `size`, so that it counts for no budget; what bounds it is the room on that disk, reserved like
 *   that in memory. `spilled` is stored before the sequence, and cleared after it: whoever reads a sequence and then
 *   `spilled` either knows in which folder the file is, or finds no file of that number and takes the reference for
 *   stale. Memory is tried first at every lease, and a spilled segment is given back as soon as no block in it is
 *   held: its owner keeps none warm.
 *   <spill> is /<folder>/<name>.spill, mode 0700, made by loom_arena_create and locked (flock, exclusive, on the folder
 *   itself) by the node for as long as it lives; it contains nothing but segments. Who destroys the arena removes it
 *   before the control file, which names it. Where the control file is gone too, after a reboot, the lock tells a dead
 *   arena's folder from a living one's: loom_arena_clear_spill.
 *   A disk that fails while it is read is a SIGBUS, as for any mapped file. On copy-on-write file systems (btrfs, ZFS)
 *   a reservation need not hold, and running out of room there may be one too.
 *
 * Leases: who holds a block
 *   `holders` has one bit for each participant, set by fetch_or, cleared by fetch_and: both can be repeated, so a
 *   process killed anywhere leaves no doubt about what is to be undone. Inside a process a private count says how
 *   many views and in-flight tokens stand behind the bit; the bit is set with the first and cleared (release) with
 *   the last.
 *   A bit is set in two ways only: by the owner when it leases the block, and by a receiver in `accept`.
 *   A block is free when no bit is set. The owner finds out when it next looks (acquire); nobody is woken.
 *   A scan of 16 words is no snapshot: a hold could move from a word not read yet to one read already. Therefore a
 *   receiver sets its bit, then adds 1 to `acquisitions` (acq_rel), then takes the token; and the owner trusts an
 *   all-zero scan only if `acquisitions` read before it (acquire) and after it is the same. A hold can leave its old
 *   bit only after the token was taken, which is after the count went up: a scan that missed the new bit and saw the
 *   old one gone sees the count changed.
 *   Sent memory is not locked: the sender's own writable view stays writable. By convention it is not written after
 *   sending.
 *
 * Messages in flight: tokens
 *   A reference to a block travels as eight integers, each below 2^53 (struct loom_reference). While it travels, a
 *   token in the sender's table stands for it: `word` = generation << 24 | receiver << 8 | state, receiver LOOM_ANY
 *   for anybody.
 *   Send (any holder may): write segment, block, block_generation; store word INFLIGHT with the next generation
 *   (release). The sender's holder bit stays set while any of its tokens for the block is unresolved.
 *   Accept:
 *     1. check every index against its table; load word (acquire): INFLIGHT, the generation of the reference, the
 *        receiver oneself or LOOM_ANY, and the token's segment, block and block_generation those of the reference,
 *        or it is stale;
 *     2. map the segment, if it is not mapped yet: the entry is LIVE or ORPHANED, the file as long as its header says;
 *     3. read offset, size and generation of the block once; check generation, that [offset, offset + size) lies in
 *        the data, and that the reference's range lies in the block;
 *     4. unless this process holds the block already: set the own bit (acq_rel), add 1 to acquisitions (acq_rel);
 *     5. CAS word INFLIGHT -> ACCEPTED (acq_rel). On failure the reference is stale: clear the bit set in step 4.
 *   The bytes are at data_offset + block.offset + reference.offset of the segment file, reference.size of them.
 *   The sender turns ACCEPTED and REVOKED tokens into FREE ones when it next looks. Recall: CAS INFLIGHT -> REVOKED.
 *   Generations never repeat within an arena: a reference is taken at most once, and an old one never.
 *
 * Death
 *   The node calls loom_arena_reap for a dead participant. Tokens addressed to it are revoked, its own are revoked
 *   (or, within a grace period that the caller decides on, left for their receivers); then its bit is cleared in
 *   every block without such a token, its segments are orphaned or removed, and when no token is left its slot is
 *   freed, in this order. Every step can be repeated after a kill. What that brought back is counted in `reclaimed`.
 *   When the node itself dies the arena is dead: loom_arena_destroy_files removes what it left, by name.
 *
 * Fork
 *   A handle belongs to the process that opened it. In a forked child every call on it returns LOOM_E_FORKED, and
 *   dropping its views changes nothing. (The handle keeps a word in a page that the kernel wipes in the child: no
 *   getpid per call.)
 *
 * Threads
 *   Calls on one handle may come from any thread: a private mutex guards it. It is not held while files are made or
 *   mapped for a lease or an accept, nor while bytes are copied.
 *
 * What is not defended against
 *   A process of the same user that writes at will into the control file can make others lose memory or read wrong
 *   bytes, and one that truncates a file can kill them. Numbers alone cannot: whatever is read from shared memory is
 *   checked against the mapping before it is used, and what the allocator needs is kept in private memory.
 */
#ifndef LOOM_ARENA_H
#define LOOM_ARENA_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#if !defined(__BYTE_ORDER__) || __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "the arena's layout is little-endian"
#endif

/* --- Layout ----------------------------------------------------------------------------------------------------- */

#define LOOM_CONTROL_MAGIC UINT64_C(0x314c54434d4f4f4c) /* the bytes "LOOMCTL1" */
#define LOOM_SEGMENT_MAGIC UINT64_C(0x314745534d4f4f4c) /* the bytes "LOOMSEG1" */
#define LOOM_LAYOUT_VERSION 2u                          /* goes up with any change below */

#define LOOM_NAME_MAX 96u
#define LOOM_SPILL_SIZE 1024u /* bytes for the spill folder's path */
#define LOOM_PARTICIPANTS 1024u
#define LOOM_SEGMENTS 1024u
#define LOOM_TOKENS 2048u     /* references in flight from one participant */
#define LOOM_BLOCKS_MAX 8192u /* blocks in one segment */
#define LOOM_NODE 0u          /* the node's row */
#define LOOM_ANY 0xffffu      /* a token's receiver: whoever gets the message */
#define LOOM_PAGE 4096u
#define LOOM_ALIGNMENT 64u
#define LOOM_HOLDER_WORDS (LOOM_PARTICIPANTS / 64u)

#define LOOM_PARTICIPANTS_OFFSET 4096u
#define LOOM_SEGMENTS_OFFSET 135168u /* 4096 + 1024 * 128 */
#define LOOM_TOKENS_OFFSET 200704u   /* 135168 + 1024 * 64 */
#define LOOM_CONTROL_SIZE (LOOM_TOKENS_OFFSET + (uint64_t)LOOM_PARTICIPANTS * LOOM_TOKENS * 32u)

enum loom_participant_state {
    LOOM_PARTICIPANT_FREE = 0,
    LOOM_PARTICIPANT_CLAIMING = 1,
    LOOM_PARTICIPANT_ACTIVE = 2,
    LOOM_PARTICIPANT_CLOSED = 3, /* its process takes no more part; the node may reap it though the process lives */
    LOOM_PARTICIPANT_REAPING = 4
};

enum loom_segment_state {
    LOOM_SEGMENT_FREE = 0,
    LOOM_SEGMENT_CREATING = 1,
    LOOM_SEGMENT_LIVE = 2,
    LOOM_SEGMENT_ORPHANED = 3, /* owner gone, blocks may be held; the node's to remove */
    LOOM_SEGMENT_CLOSING = 4
};

/* What to do when there is no room: loom_control.full */
enum loom_full { LOOM_FULL_WAIT = 0, LOOM_FULL_RAISE = 1, LOOM_FULL_SPILL = 2 };

enum loom_block_state { LOOM_BLOCK_FREE = 0, LOOM_BLOCK_LEASED = 1 };

enum loom_token_state {
    LOOM_TOKEN_FREE = 0,
    LOOM_TOKEN_INFLIGHT = 1,
    LOOM_TOKEN_ACCEPTED = 2,
    LOOM_TOKEN_REVOKED = 3
};

/* What a participant did, for stats. One writer each; readers may see them a moment late. */
struct loom_counters {
    _Atomic uint64_t bytes_shared;        /* sent by reference without a copy */
    _Atomic uint64_t bytes_copied;        /* copied into the arena to be sent, or reported by loom_arena_count_copied */
    _Atomic uint64_t references_sent;
    _Atomic uint64_t references_accepted;
    _Atomic uint64_t leases;
    _Atomic uint64_t blocks_spilled;      /* leases that were served from the spill folder, and their bytes */
    _Atomic uint64_t bytes_spilled;
};

/* What reap and sweep took back from participants that are gone. The node alone writes it. */
struct loom_reclaimed {
    _Atomic uint64_t bytes;      /* of those blocks */
    _Atomic uint64_t blocks;     /* that nobody holds any more, now that a dead holder's bit is cleared */
    _Atomic uint64_t references; /* in flight, from the dead or to them, that were revoked */
    _Atomic uint64_t segments;   /* removed, of owners that are gone */
};

struct loom_control {
    _Atomic uint64_t magic;  /* 0   LOOM_CONTROL_MAGIC, stored last (release) when the file is made */
    uint32_t version;        /* 8   LOOM_LAYOUT_VERSION */
    uint32_t header_size;    /* 12  sizeof(struct loom_control) */
    uint64_t total_size;     /* 16  LOOM_CONTROL_SIZE */
    uint64_t budget;         /* 24  bytes of data parts, all segments together */
    uint64_t boot_id[2];     /* 32  the kernel's boot id, as 16 bytes */
    uint32_t participants;   /* 48  LOOM_PARTICIPANTS */
    uint32_t segments;       /* 52  LOOM_SEGMENTS */
    uint32_t tokens;         /* 56  LOOM_TOKENS */
    uint32_t full;           /* 60  enum loom_full */
    _Atomic uint64_t next_sequence;   /* 64   number of the next segment file, from 1; fetch_add */
    uint64_t reserved1[7];
    _Atomic uint64_t next_generation; /* 128  of the next lease, from 1; fetch_add */
    uint64_t reserved2[7];
    _Atomic uint64_t epoch;           /* 192  + 1 whenever a segment goes: mappings should be looked over */
    _Atomic uint64_t pressure;        /* 200  CLOCK_MONOTONIC ns of the latest lease without room: give back */
    uint64_t reserved3[6];
    struct loom_counters retired;     /* 256  of participants that are gone */
    struct loom_reclaimed reclaimed;  /* 312 */
    uint64_t wait_ns;                 /* 344  how long to wait for room where no deadline says it; LOOM_FULL_WAIT */
    uint64_t reserved4[212];
    char spill[LOOM_SPILL_SIZE];      /* 2048 the folder of spilled segments, absolute, ends in a zero; "" for none */
    uint64_t reserved5[128];
};

struct loom_participant {
    _Atomic uint64_t word;            /* 0   generation << 32 | pid << 8 | state */
    _Atomic uint64_t start_time;      /* 8   field 22 of /proc/PID/stat, clock ticks since boot */
    _Atomic uint32_t tokens_reserved; /* 16  tokens of its table that have memory */
    uint32_t reserved0;
    struct loom_counters counters;    /* 24 */
    uint64_t reserved1[6];
};

struct loom_segment_entry {
    _Atomic uint64_t word;     /* 0   generation << 24 | owner << 8 | state */
    _Atomic uint64_t size;     /* 8   bytes of the data part, 0 when free */
    _Atomic uint64_t sequence; /* 16  names the file, 0 while there is none */
    _Atomic uint64_t spilled;  /* 24  bytes of the data part when the file is in the spill folder, and `size` 0 */
    uint64_t reserved[4];
};

struct loom_token {
    _Atomic uint64_t word;             /* 0   generation << 24 | receiver << 8 | state */
    _Atomic uint32_t segment;          /* 8 */
    _Atomic uint32_t block;            /* 12 */
    _Atomic uint64_t block_generation; /* 16 */
    uint64_t reserved;
};

struct loom_segment {
    uint64_t magic;              /* 0   LOOM_SEGMENT_MAGIC */
    uint32_t version;            /* 8   LOOM_LAYOUT_VERSION */
    uint32_t header_size;        /* 12  sizeof(struct loom_segment) */
    uint64_t sequence;           /* 16  that of the file's name */
    uint32_t index;              /* 24  of its entry */
    uint32_t blocks;             /* 28  descriptors that follow */
    uint64_t data_offset;        /* 32  a multiple of LOOM_PAGE */
    uint64_t data_size;          /* 40  a multiple of LOOM_PAGE */
    _Atomic uint32_t high_water; /* 48  descriptors from here on were never used */
    uint32_t reserved[51];
};

struct loom_block {
    _Atomic uint32_t state;        /* 0   enum loom_block_state */
    uint32_t reserved0;
    _Atomic uint64_t offset;       /* 8   from the start of the data part, a multiple of LOOM_ALIGNMENT */
    _Atomic uint64_t size;         /* 16  bytes asked for */
    _Atomic uint64_t generation;   /* 24  of the lease; unique in the arena */
    _Atomic uint64_t acquisitions; /* 32  see "Leases" */
    _Atomic uint64_t leased_ns;    /* 40  when it was leased: CLOCK_MONOTONIC, some 10 ms behind at the most */
    uint64_t reserved1[2];
    _Atomic uint64_t holders[LOOM_HOLDER_WORDS]; /* 64  participant p is bit p % 64 of word p / 64 */
};

#define LOOM_FROZEN(type, field, at) _Static_assert(offsetof(struct type, field) == (at), #type "." #field " moved")
_Static_assert(ATOMIC_LLONG_LOCK_FREE == 2 && sizeof(_Atomic uint64_t) == 8, "64-bit atomics must be lock-free");
_Static_assert(ATOMIC_INT_LOCK_FREE == 2 && sizeof(_Atomic uint32_t) == 4, "32-bit atomics must be lock-free");
_Static_assert(sizeof(struct loom_counters) == 56, "loom_counters");
_Static_assert(sizeof(struct loom_reclaimed) == 32, "loom_reclaimed");
_Static_assert(sizeof(struct loom_control) == 4096, "loom_control");
_Static_assert(sizeof(struct loom_participant) == 128, "loom_participant");
_Static_assert(sizeof(struct loom_segment_entry) == 64, "loom_segment_entry");
_Static_assert(sizeof(struct loom_token) == 32, "loom_token");
_Static_assert(sizeof(struct loom_segment) == 256, "loom_segment");
_Static_assert(sizeof(struct loom_block) == 192, "loom_block");
_Static_assert(LOOM_SEGMENTS_OFFSET == LOOM_PARTICIPANTS_OFFSET + LOOM_PARTICIPANTS * 128u, "segment table");
_Static_assert(LOOM_TOKENS_OFFSET == LOOM_SEGMENTS_OFFSET + LOOM_SEGMENTS * 64u, "token tables");
_Static_assert(LOOM_TOKENS_OFFSET % LOOM_PAGE == 0 && LOOM_TOKENS * 32u % LOOM_PAGE == 0, "tables start on pages");
LOOM_FROZEN(loom_counters, bytes_shared, 0);
LOOM_FROZEN(loom_counters, bytes_copied, 8);
LOOM_FROZEN(loom_counters, references_sent, 16);
LOOM_FROZEN(loom_counters, references_accepted, 24);
LOOM_FROZEN(loom_counters, leases, 32);
LOOM_FROZEN(loom_counters, blocks_spilled, 40);
LOOM_FROZEN(loom_counters, bytes_spilled, 48);
LOOM_FROZEN(loom_reclaimed, bytes, 0);
LOOM_FROZEN(loom_reclaimed, blocks, 8);
LOOM_FROZEN(loom_reclaimed, references, 16);
LOOM_FROZEN(loom_reclaimed, segments, 24);
LOOM_FROZEN(loom_control, magic, 0);
LOOM_FROZEN(loom_control, version, 8);
LOOM_FROZEN(loom_control, header_size, 12);
LOOM_FROZEN(loom_control, total_size, 16);
LOOM_FROZEN(loom_control, budget, 24);
LOOM_FROZEN(loom_control, boot_id, 32);
LOOM_FROZEN(loom_control, participants, 48);
LOOM_FROZEN(loom_control, segments, 52);
LOOM_FROZEN(loom_control, tokens, 56);
LOOM_FROZEN(loom_control, full, 60);
LOOM_FROZEN(loom_control, next_sequence, 64);
LOOM_FROZEN(loom_control, next_generation, 128);
LOOM_FROZEN(loom_control, epoch, 192);
LOOM_FROZEN(loom_control, pressure, 200);
LOOM_FROZEN(loom_control, retired, 256);
LOOM_FROZEN(loom_control, reclaimed, 312);
LOOM_FROZEN(loom_control, wait_ns, 344);
LOOM_FROZEN(loom_control, spill, 2048);
LOOM_FROZEN(loom_participant, word, 0);
LOOM_FROZEN(loom_participant, start_time, 8);
LOOM_FROZEN(loom_participant, tokens_reserved, 16);
LOOM_FROZEN(loom_participant, counters, 24);
LOOM_FROZEN(loom_segment_entry, word, 0);
LOOM_FROZEN(loom_segment_entry, size, 8);
LOOM_FROZEN(loom_segment_entry, sequence, 16);
LOOM_FROZEN(loom_segment_entry, spilled, 24);
LOOM_FROZEN(loom_token, word, 0);
LOOM_FROZEN(loom_token, segment, 8);
LOOM_FROZEN(loom_token, block, 12);
LOOM_FROZEN(loom_token, block_generation, 16);
LOOM_FROZEN(loom_segment, magic, 0);
LOOM_FROZEN(loom_segment, version, 8);
LOOM_FROZEN(loom_segment, header_size, 12);
LOOM_FROZEN(loom_segment, sequence, 16);
LOOM_FROZEN(loom_segment, index, 24);
LOOM_FROZEN(loom_segment, blocks, 28);
LOOM_FROZEN(loom_segment, data_offset, 32);
LOOM_FROZEN(loom_segment, data_size, 40);
LOOM_FROZEN(loom_segment, high_water, 48);
LOOM_FROZEN(loom_block, state, 0);
LOOM_FROZEN(loom_block, offset, 8);
LOOM_FROZEN(loom_block, size, 16);
LOOM_FROZEN(loom_block, generation, 24);
LOOM_FROZEN(loom_block, acquisitions, 32);
LOOM_FROZEN(loom_block, leased_ns, 40);
LOOM_FROZEN(loom_block, holders, 64);
#undef LOOM_FROZEN

/* --- Return codes ----------------------------------------------------------------------------------------------- */

enum loom_code {
    LOOM_OK = 0,
    LOOM_E_FULL = -1,      /* over the budget, or /dev/shm has no pages left, and the spill folder, if there is one,
                            * has no room either; may pass when somebody releases */
    LOOM_E_TOKENS = -2,    /* LOOM_TOKENS references of this process are in flight; passes when one is accepted */
    LOOM_E_STALE = -3,     /* the reference is revoked, taken, outlived, out of bounds, or never was one */
    LOOM_E_CORRUPT = -4,   /* a file is no arena file, or its numbers contradict each other */
    LOOM_E_NOT_FOUND = -5, /* there is no control file of that name */
    LOOM_E_VERSION = -6,   /* the control file has another layout version */
    LOOM_E_EXISTS = -7,    /* create: the name is taken */
    LOOM_E_SLOTS = -8,     /* no participant slot, or no segment entry, is free */
    LOOM_E_FOREIGN = -9,   /* the memory is not in a block that this process holds */
    LOOM_E_FORKED = -10,   /* the handle was inherited over fork; open one in this process */
    LOOM_E_CLOSED = -11,   /* the handle, or the view, is closed */
    LOOM_E_USAGE = -12,    /* a bad name, size or index, or a call that only the node may make */
    LOOM_E_ALIVE = -13,    /* reap: the participant's process lives */
    LOOM_E_OS = -14,       /* a system call failed: errno says how */
    LOOM_E_MEMORY = -15,   /* malloc failed */
    LOOM_E_DENIED = -16,   /* the file belongs to another user, or is open to others */
    LOOM_E_ABSENT = -17    /* send: no process takes part under the receiver's index */
};

/* One English sentence for a code, without a full stop. Never NULL. */
const char *loom_arena_text(int code);

/* --- Handles and views ------------------------------------------------------------------------------------------ */

typedef struct loom_arena loom_arena; /* one process's handle; private memory */

/* A hold on (part of) a block. Owned by the caller from lease or accept until loom_arena_release; do not copy it. */
typedef struct loom_view {
    loom_arena *arena;   /* NULL once released */
    void *map;           /* private */
    unsigned char *data; /* writing through a read-only view that was accepted is a SIGSEGV: the mapping forbids it */
    uint64_t size;
    uint64_t generation;
    uint32_t segment;
    uint32_t block;
    int readonly;
} loom_view;

/* What travels in a message: eight integers, in this order. */
typedef struct loom_reference {
    uint64_t segment;
    uint64_t block;
    uint64_t generation;
    uint64_t offset; /* from the start of the block */
    uint64_t size;
    uint64_t sender; /* participant index */
    uint64_t token;
    uint64_t token_generation;
} loom_reference;

typedef struct loom_stats {
    uint64_t budget_bytes;
    uint64_t reserved_bytes; /* data parts of all segments in memory */
    uint64_t control_bytes;  /* bookkeeping on top of that */
    uint64_t in_use_bytes;   /* of blocks that somebody holds, or that their owner has not looked at since, spilled
                              * ones too */
    uint64_t segments;
    uint64_t orphaned;       /* segments among them whose owner is gone */
    uint64_t blocks;
    uint64_t in_flight;      /* tokens */
    uint64_t participants;
    uint64_t bytes_shared;
    uint64_t bytes_copied;
    uint64_t references_sent;
    uint64_t references_accepted;
    uint64_t leases;
    uint64_t free_bytes;     /* of the file system under the arena */
    uint64_t spilled_blocks; /* blocks among `blocks` that lie in the spill folder */
    uint64_t spilled_bytes;  /* of them */
    uint64_t spill_reserved_bytes; /* data parts of the segments there */
    uint64_t spill_free_bytes;     /* of the file system under the spill folder; 0 when there is none */
    uint64_t blocks_spilled;       /* since the start */
    uint64_t bytes_spilled;
    uint64_t reclaimed_bytes; /* struct loom_reclaimed */
    uint64_t reclaimed_blocks;
    uint64_t reclaimed_references;
    uint64_t reclaimed_segments;
} loom_stats;

typedef struct loom_participant_info {
    uint32_t index;
    uint32_t pid;
    uint64_t start_time;
    int alive; /* the process lives and has not closed its handle */
} loom_participant_info;

/* One row of the segment table; the numbers are as they stand in it. */
typedef struct loom_segment_info {
    uint32_t index;
    uint32_t state;    /* enum loom_segment_state, never FREE; of a damaged table anything below 256 */
    uint32_t owner;    /* participant, the node for an orphan; of a damaged table anything up to 0xffff */
    uint32_t spilled;  /* 1: its file is in the spill folder */
    uint64_t sequence; /* names the file; 0 while there is none */
    uint64_t size;     /* bytes of the data part */
} loom_segment_info;

/* One block that somebody holds. */
typedef struct loom_block_info {
    uint32_t segment;
    uint32_t block;
    uint32_t owner;      /* that of the segment */
    uint32_t reserved;
    uint64_t size;       /* bytes asked for; no more than the data part has, whatever the descriptor says */
    uint64_t generation;
    uint64_t age_ns; /* since the lease */
    uint64_t holders[LOOM_HOLDER_WORDS]; /* at least one bit is set; as in struct loom_block */
} loom_block_info;

/* What an arena's users do when there is no room. */
typedef struct loom_policy {
    uint32_t full;      /* enum loom_full */
    uint64_t wait_ns;
    const char *folder; /* where the spill folder is made, an absolute path; NULL unless `full` is LOOM_FULL_SPILL */
} loom_policy;

/* Make an arena and take row 0. `policy` NULL: LOOM_FULL_WAIT, for one second.
 * OK, E_USAGE (name, policy), E_EXISTS, E_FULL (no pages for the control file), E_OS (also: the spill folder cannot be
 * made, or its file system cannot reserve, EOPNOTSUPP), E_MEMORY. */
int loom_arena_create(const char *name, uint64_t budget, const loom_policy *policy, loom_arena **out);

/* Take part in an arena.
 * OK, E_USAGE, E_NOT_FOUND, E_VERSION, E_CORRUPT, E_DENIED, E_SLOTS, E_FULL (no page for tokens), E_OS, E_MEMORY. */
int loom_arena_attach(const char *name, loom_arena **out);

/* Close the handle: it refuses every call from now on. Own segments are given back, or orphaned where others hold
 * blocks; the slot is freed. While views live the mappings, and all that, wait for the last loom_arena_release. With
 * references still in flight the slot stays as CLOSED and the node's sweep frees it when they are resolved. `arena`
 * must not be used afterwards, except through views. In a forked child: frees nothing, touches nothing shared. */
void loom_arena_close(loom_arena *arena);

/* Imitate a death, for tests: the slot says CLOSED and everything is left exactly as it lies. */
void loom_arena_abandon(loom_arena *arena);

uint32_t loom_arena_participant(const loom_arena *arena);
uint64_t loom_arena_budget(const loom_arena *arena);
const char *loom_arena_name(const loom_arena *arena);
uint32_t loom_arena_full(const loom_arena *arena); /* enum loom_full */
uint64_t loom_arena_wait_ns(const loom_arena *arena);
const char *loom_arena_spill(const loom_arena *arena); /* the spill folder, "" for none */

/* Reserve one block of `size` bytes (0 is allowed); its bytes are whatever was there before. Warm space is taken
 * first; otherwise a segment is made: 4 MiB, doubling to 64 MiB, at least the request, smaller where the budget is
 * short; otherwise the block is spilled, if that is the policy, into segments of 4 MiB or the request.
 * OK, E_FULL, E_SLOTS (segment table), E_FORKED, E_CLOSED, E_OS, E_MEMORY. No system call when warm space is
 * found. */
int loom_arena_lease(loom_arena *arena, uint64_t size, loom_view *out);

/* The warm half of the above: LOOM_E_FULL when a segment would have to be made. Never blocks on a file. */
int loom_arena_lease_warm(loom_arena *arena, uint64_t size, loom_view *out);

/* End a hold. OK, E_FORKED (the view is dropped all the same), E_CLOSED (released before: nothing happens). */
int loom_arena_release(loom_view *view);

/* Take a token for [data, data + size), which must lie in one block that this process holds. `receiver`: an index or
 * ANY.
 * OK, E_FOREIGN, E_TOKENS, E_ABSENT, E_USAGE, E_FULL (no page for more tokens), E_FORKED, E_CLOSED, E_OS. */
int loom_arena_send(loom_arena *arena, const void *data, uint64_t size, uint32_t receiver, loom_reference *out);

/* Send the whole of a block just leased and filled, count its bytes as copied, and end the view: the block then
 * lives by its token. On an error the view stays. Codes as for loom_arena_send. */
int loom_arena_hand_over(loom_view *view, uint32_t receiver, loom_reference *out);

/* The reference was never delivered: take its token back. OK; E_STALE when it was accepted, revoked or is not
 * ours. */
int loom_arena_recall(loom_arena *arena, const loom_reference *reference);

/* Take a reference over.
 * OK, E_STALE, E_CORRUPT (the segment file), E_DENIED, E_FULL (a damaged file), E_FORKED, E_CLOSED, E_OS, E_MEMORY.
 * A failed accept changes nothing. */
int loom_arena_accept(loom_arena *arena, const loom_reference *reference, loom_view *out);

/* 1 when [data, data + size) lies in one block that this process holds, else 0. */
int loom_arena_holds(loom_arena *arena, const void *data, uint64_t size);

/* Add to the participant's counter of bytes that had to be copied into a message. OK, E_FORKED, E_CLOSED. */
int loom_arena_count_copied(loom_arena *arena, uint64_t bytes);

/* Reclaim resolved tokens and freed blocks now; unmap segments that are gone; give wholly free segments back when
 * somebody found no room since the last call, or when they idled for 10 s (one of the first size is kept). Processes
 * that idle should call this now and then: the hold of a delivered reference ends when its sender looks. `open`
 * (NULL for nobody): own references in flight, and own blocks that are spilled: what is worth another look soon. OK,
 * E_FORKED, E_CLOSED. */
int loom_arena_collect(loom_arena *arena, uint64_t *open);

/* Collect, then give back every wholly free own segment. `bytes`: data bytes given back. OK, E_FORKED, E_CLOSED. */
int loom_arena_trim(loom_arena *arena, uint64_t *bytes);

/* Node only. Undo what a dead (or CLOSED) participant left. `revoke` 0: its references in flight stay valid, and while
 * any is left (`in_flight`) so do its slot and the blocks they refer to; call again. Repeating it, after a kill too,
 * is safe. OK, E_USAGE (not the node; the node's own row), E_ALIVE, E_FORKED, E_CLOSED, E_OS, E_MEMORY. */
int loom_arena_reap(loom_arena *arena, uint32_t participant, int revoke, uint64_t *in_flight);

/* Node only. Reap every participant that is dead, CLOSED or half reaped, revoking nothing, and remove orphaned
 * segments that nobody holds: for processes that are not the node's children, and for what an earlier reap had to
 * leave. OK, E_USAGE, E_FORKED, E_CLOSED, E_OS, E_MEMORY. */
int loom_arena_sweep(loom_arena *arena);

/* Node only: unlink all files of the arena; mappings stay until their views go. OK, E_USAGE, E_FORKED, E_CLOSED. */
int loom_arena_destroy(loom_arena *arena);

/* Unlink all files of a dead arena, and the spill folder that its control file names. `count`: how many. OK, E_USAGE
 * (name), E_OS (another user's, among others; what is ours is gone all the same). */
int loom_arena_destroy_files(const char *name, uint64_t *count);

/* Remove the spill folders in `folder` of this user's arenas that are dead: those that nobody has locked. `count`: how
 * many. OK, E_OS (the folder cannot be read). */
int loom_arena_clear_spill(const char *folder, uint64_t *count);

/* OK, E_FORKED, E_CLOSED. Walks every table: for people, not for every message. */
int loom_arena_stats(loom_arena *arena, loom_stats *out);

/* Fill at most `capacity` rows; `count`: rows filled. OK, E_FORKED, E_CLOSED. */
int loom_arena_participants(loom_arena *arena, loom_participant_info *out, uint32_t capacity, uint32_t *count);

/* Listings, for people. Each walks a bounded table once and changes nothing in it; they may map segments, and reserve
 * token pages, as `stats` does. None is a snapshot: while others go on, a row may be gone by the time it is read, and
 * numbers of two rows need not fit together. Whatever the tables hold, the calls return. */

/* Every segment that is not FREE, by index. At most `capacity` rows (LOOM_SEGMENTS are enough); `count`: rows filled.
 * OK, E_FORKED, E_CLOSED. */
int loom_arena_segments(loom_arena *arena, loom_segment_info *out, uint32_t capacity, uint32_t *count);

/* Every block of one segment that somebody holds, by index: the blocks that `stats` counts. At most `capacity` rows
 * (LOOM_BLOCKS_MAX are enough); `count`: rows filled, 0 when the segment is gone, or damaged.
 * OK, E_USAGE (segment), E_FORKED, E_CLOSED, E_OS, E_MEMORY. */
int loom_arena_blocks(loom_arena *arena, uint32_t segment, loom_block_info *out, uint32_t capacity, uint32_t *count);

/* References in flight by sender: counts[p] of participant p, LOOM_PARTICIPANTS numbers. OK, E_FORKED, E_CLOSED. */
int loom_arena_in_flight(loom_arena *arena, uint32_t *counts);

/* Start time of a process in clock ticks since boot. OK; E_NOT_FOUND when it is gone, or a zombie; E_OS. */
int loom_process_start_time(uint32_t pid, uint64_t *ticks);

/* --- Named steps, for crash tests ------------------------------------------------------------------------------- */

/* Each name marks an instant between two changes that others can see. When the hook is set, it is called there. */
#define LOOM_STEPS(X)                                                                                                \
    X(CREATE_FOLDER) X(CREATE_LINKED)                                                                                \
    X(CLAIM_TAKEN) X(CLAIM_RESERVED) X(CLAIM_ACTIVE)                                                                 \
    X(SEGMENT_CLAIMED) X(SEGMENT_SIZED) X(SEGMENT_NUMBERED) X(SEGMENT_CREATED) X(SEGMENT_RESERVED)                   \
    X(SEGMENT_INITIALISED) X(SEGMENT_LIVE)                                                                           \
    X(LEASE_DESCRIBED) X(LEASE_HELD) X(LEASE_LEASED)                                                                 \
    X(SEND_WRITTEN) X(SEND_INFLIGHT)                                                                                 \
    X(RECALL_REVOKED) X(TOKEN_FREED)                                                                                 \
    X(ACCEPT_CHECKED) X(ACCEPT_MAPPED) X(ACCEPT_HELD) X(ACCEPT_COUNTED) X(ACCEPT_ACCEPTED)                           \
    X(RELEASE_BEGUN) X(RELEASE_CLEARED) X(SCAN_HALFWAY) X(RELEASE_FREED)                                             \
    X(GIVE_CLOSING) X(GIVE_PUNCHED) X(GIVE_UNLINKED) X(GIVE_CLEARED) X(GIVE_FREED)                                   \
    X(CLOSE_BEGUN) X(CLOSE_GIVEN) X(CLOSE_REVOKED) X(CLOSE_FREED)                                                    \
    X(REAP_MARKED) X(REAP_ADDRESSED) X(REAP_TOKENS) X(REAP_BITS) X(REAP_SEGMENTS) X(SLOT_RETIRED) X(REAP_FREED) \
    X(DESTROY_SPILL) X(DESTROY_SEGMENTS) X(DESTROY_CONTROL)

enum loom_step {
#define LOOM_STEP_ENUM(name) LOOM_STEP_##name,
    LOOM_STEPS(LOOM_STEP_ENUM)
#undef LOOM_STEP_ENUM
    LOOM_STEP_COUNT
};

extern void (*loom_arena_step_hook)(int step); /* NULL outside tests */
const char *loom_arena_step_name(int step);    /* "accept_held"; NULL when out of range */

#endif
