/* arena_reader.h -- the reader's side of an arena, written from native/include/loom_arena.h and from nothing else.
 *
 * What a process needs that receives tensors and sends none: take part, accept references, read, let go, leave. One
 * thread. Return codes are the header's (enum loom_code). The names here are this example's own; no library is linked.
 */
#ifndef ARENA_READER_H
#define ARENA_READER_H

#include "loom_arena.h"

/* One block that this process holds: its holder bit is set as long as `views` is above 0. */
struct arena_hold {
    struct arena_hold *next;
    uint64_t segment, block, generation;
    uint64_t offset, size; /* of the block, read once when it was accepted */
    uint64_t views;
    unsigned char *control, *data; /* the segment file's two parts */
    uint64_t control_size, data_size;
};

struct arena {
    char name[LOOM_NAME_MAX + 1];
    int fd;
    unsigned char *control; /* LOOM_CONTROL_SIZE bytes */
    uint32_t participant;   /* goes into the field `participant` of every header: "send me references" */
    struct arena_hold *holds;
};

struct arena_view {
    const unsigned char *data; /* 64-byte aligned when the sender sent a block from its start */
    uint64_t size;
    struct arena_hold *hold; /* NULL once released */
};

/* Map the control file of the arena `name` and claim a participant's row.
 * OK, E_USAGE (name), E_NOT_FOUND, E_DENIED, E_CORRUPT, E_VERSION, E_FULL, E_SLOTS, E_OS. */
int arena_open(struct arena *arena, const char *name);

/* Take over a reference, eight integers as they came in a message; until arena_release its bytes stay as they are.
 * OK, E_STALE, E_DENIED, E_CORRUPT, E_FULL, E_OS, E_MEMORY. After an error nothing is held. */
int arena_accept(struct arena *arena, const uint64_t reference[8], struct arena_view *view);

/* Let go. The last view of a block clears the holder bit; `data` must not be used any more. */
void arena_release(struct arena *arena, struct arena_view *view);

/* Leave the arena; release all views before. The row says CLOSED, and the node, which looks every second, frees it. */
void arena_close(struct arena *arena);

#endif
