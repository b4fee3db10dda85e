/* arena_control.c -- the control file, participants' slots, and the life of a handle. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "arena_internal.h"

void (*loom_arena_step_hook)(int step) = NULL;

const char *loom_arena_step_name(int step) {
    static const char *const names[] = {
#define LOOM_STEP_NAME(name) #name,
        LOOM_STEPS(LOOM_STEP_NAME)
#undef LOOM_STEP_NAME
    };
    return step >= 0 && step < LOOM_STEP_COUNT ? names[step] : NULL;
}

const char *loom_arena_text(int code) {
    switch (code) {
    case LOOM_OK: return "no error";
    case LOOM_E_FULL: return "the arena's budget or /dev/shm is used up";
    case LOOM_E_TOKENS: return "too many references of this process are in flight";
    case LOOM_E_STALE: return "the reference is revoked, taken already, outlived or out of bounds";
    case LOOM_E_CORRUPT: return "the file is no arena file, or its numbers contradict each other";
    case LOOM_E_NOT_FOUND: return "there is no arena of that name";
    case LOOM_E_VERSION: return "the arena has another layout version";
    case LOOM_E_EXISTS: return "an arena of that name exists";
    case LOOM_E_SLOTS: return "a table of the arena is full";
    case LOOM_E_FOREIGN: return "the memory is not in a block that this process holds";
    case LOOM_E_FORKED: return "the handle was inherited over fork";
    case LOOM_E_CLOSED: return "the handle or the block is closed";
    case LOOM_E_USAGE: return "bad name, size or index, or a call that only the node may make";
    case LOOM_E_ALIVE: return "the participant's process lives";
    case LOOM_E_OS: return "a system call failed";
    case LOOM_E_MEMORY: return "out of private memory";
    case LOOM_E_DENIED: return "the arena's file belongs to another user, or is open to others";
    case LOOM_E_ABSENT: return "no process takes part under the receiver's index";
    default: return "unknown code";
    }
}

int loom_enter(loom_arena *arena) {
    if (!atomic_load_explicit(arena->alive, memory_order_relaxed)) return LOOM_E_FORKED;
    pthread_mutex_lock(&arena->mutex);
    if (!arena->closed) return LOOM_OK;
    pthread_mutex_unlock(&arena->mutex);
    return LOOM_E_CLOSED;
}

/* --- Token tables ----------------------------------------------------------------------------------------------- */

struct loom_token *loom_token_at(const loom_arena *arena, uint32_t participant, uint32_t token) {
    unsigned char *tables = (unsigned char *)arena->control + LOOM_TOKENS_OFFSET;
    return (struct loom_token *)tables + (size_t)participant * LOOM_TOKENS + token;
}

uint32_t loom_tokens_reserved(const loom_arena *arena, uint32_t participant) {
    uint32_t reserved = atomic_load_explicit(&arena->participants[participant].tokens_reserved, memory_order_acquire);
    return reserved < LOOM_TOKENS ? reserved : LOOM_TOKENS;
}

/* Make sure the first `count` tokens of a table have memory, whatever its owner's row says. */
int loom_tokens_ready_locked(loom_arena *arena, uint32_t participant, uint32_t count) {
    if (arena->tokens_seen[participant] >= count) return LOOM_OK;
    uint64_t per_page = LOOM_PAGE / sizeof(struct loom_token);
    uint32_t wanted = (uint32_t)((count + per_page - 1) / per_page * per_page);
    uint64_t offset = LOOM_TOKENS_OFFSET + (uint64_t)participant * LOOM_TOKENS * sizeof(struct loom_token);
    int code = loom_os_reserve(arena->fd, offset, wanted * sizeof(struct loom_token));
    if (code == LOOM_OK) arena->tokens_seen[participant] = wanted;
    return code;
}

/* --- Opening ---------------------------------------------------------------------------------------------------- */

void loom_free_handle(loom_arena *arena) {
    if (!arena) return;
    for (uint32_t i = 0; i < LOOM_SEGMENTS; i++) loom_map_free(arena->maps[i]);
    while (arena->stale) {
        struct map *map = arena->stale;
        arena->stale = map->next;
        loom_map_free(map);
    }
    if (arena->control) munmap(arena->control, LOOM_CONTROL_SIZE);
    if (arena->fd >= 0) close(arena->fd);
    if (arena->spill_fd >= 0) close(arena->spill_fd);
    loom_os_alive_free(arena->alive);
    pthread_mutex_destroy(&arena->mutex);
    free(arena->pending);
    free(arena);
}

static int handle_new(const char *name, loom_arena **out) {
    if (!loom_os_name_ok(name)) return LOOM_E_USAGE;
    loom_arena *arena = calloc(1, sizeof *arena);
    if (!arena) return LOOM_E_MEMORY;
    arena->fd = arena->spill_fd = -1;
    strcpy(arena->name, name);
    pthread_mutex_init(&arena->mutex, NULL);
    int code = loom_os_alive_page(&arena->alive);
    if (code)
        loom_free_handle(arena);
    else
        *out = arena;
    return code;
}

static int handle_map(loom_arena *arena) {
    void *at;
    int code = loom_os_map(arena->fd, 0, LOOM_CONTROL_SIZE, true, &at);
    if (code) return code;
    arena->control = at;
    arena->participants = (void *)((unsigned char *)at + LOOM_PARTICIPANTS_OFFSET);
    arena->entries = (void *)((unsigned char *)at + LOOM_SEGMENTS_OFFSET);
    return LOOM_OK;
}

/* Fill the row `me`, which is ours already, and learn which tokens are free. */
static int slot_fill(loom_arena *arena, uint32_t me, uint64_t generation) {
    struct loom_participant *row = &arena->participants[me];
    uint64_t start_time;
    int code = loom_process_start_time((uint32_t)getpid(), &start_time);
    if (code) return code == LOOM_E_NOT_FOUND ? LOOM_E_OS : code;
    atomic_store_explicit(&row->start_time, start_time, memory_order_release);
    code = loom_tokens_ready_locked(arena, me, 1);
    if (code) return code;
    uint32_t reserved = loom_tokens_reserved(arena, me), ready = arena->tokens_seen[me];
    if (reserved < ready) {
        reserved = ready;
        atomic_store_explicit(&row->tokens_reserved, reserved, memory_order_release);
    } else {
        code = loom_tokens_ready_locked(arena, me, reserved);
        if (code) return code;
    }
    LOOM_STEP(CLAIM_RESERVED);
    arena->token_limit = reserved;
    for (uint32_t i = reserved; i-- > 0;) {
        uint64_t word = atomic_load_explicit(&loom_token_at(arena, me, i)->word, memory_order_relaxed);
        if (loom_word_state(word) == LOOM_TOKEN_FREE) arena->token_ids[arena->token_count++] = i;
    }
    _Atomic uint64_t *counters = (_Atomic uint64_t *)&row->counters;
    for (size_t i = 0; i < sizeof row->counters / sizeof *counters; i++)
        atomic_store_explicit(&counters[i], 0, memory_order_relaxed);
    arena->me = me;
    uint64_t active = loom_participant_word(generation, (uint64_t)getpid(), LOOM_PARTICIPANT_ACTIVE);
    atomic_store_explicit(&row->word, active, memory_order_release);
    LOOM_STEP(CLAIM_ACTIVE);
    return LOOM_OK;
}

static int slot_claim(loom_arena *arena) {
    uint64_t pid = (uint64_t)getpid();
    for (uint32_t i = LOOM_NODE + 1; i < LOOM_PARTICIPANTS; i++) {
        struct loom_participant *row = &arena->participants[i];
        uint64_t word = atomic_load_explicit(&row->word, memory_order_relaxed);
        if (loom_word_state(word) != LOOM_PARTICIPANT_FREE) continue;
        uint64_t generation = word >> 32;
        uint64_t claiming = loom_participant_word(generation, pid, LOOM_PARTICIPANT_CLAIMING);
        if (!atomic_compare_exchange_strong_explicit(&row->word, &word, claiming, memory_order_acq_rel,
                                                     memory_order_relaxed))
            continue;
        LOOM_STEP(CLAIM_TAKEN);
        int code = slot_fill(arena, i, generation);
        if (code) loom_slot_free(arena, i);
        return code;
    }
    return LOOM_E_SLOTS;
}

/* The row's counters join those of the departed; then the next user may come. */
void loom_slot_free(loom_arena *arena, uint32_t participant) {
    struct loom_participant *row = &arena->participants[participant];
    _Atomic uint64_t *from = (_Atomic uint64_t *)&row->counters, *to = (_Atomic uint64_t *)&arena->control->retired;
    for (size_t i = 0; i < sizeof row->counters / sizeof *from; i++) {
        uint64_t amount = atomic_exchange_explicit(&from[i], 0, memory_order_relaxed);
        if (amount) atomic_fetch_add_explicit(&to[i], amount, memory_order_relaxed);
    }
    atomic_store_explicit(&row->start_time, 0, memory_order_relaxed);
    LOOM_STEP(SLOT_RETIRED);
    uint64_t word = atomic_load_explicit(&row->word, memory_order_relaxed);
    uint64_t generation = ((word >> 32) + 1) & 0xffffffff;
    word = loom_participant_word(generation, 0, LOOM_PARTICIPANT_FREE);
    atomic_store_explicit(&row->word, word, memory_order_release);
}

static int control_make(loom_arena *arena) {
    char path[LOOM_PATH_MAX], link[64];
    loom_os_path(path, sizeof path, arena->name, 0);
    /* Made without a name and linked when complete: nobody sees half a control file, and a kill leaves nothing. */
    arena->fd = open(LOOM_FOLDER, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
    if (arena->fd < 0) return errno == ENOSPC ? LOOM_E_FULL : LOOM_E_OS;
    if (fchmod(arena->fd, 0600) || ftruncate(arena->fd, (off_t)LOOM_CONTROL_SIZE))
        return errno == ENOSPC ? LOOM_E_FULL : LOOM_E_OS;
    int code = loom_os_reserve(arena->fd, 0, LOOM_TOKENS_OFFSET);
    if (!code) code = handle_map(arena);
    if (code) return code;
    struct loom_control *control = arena->control;
    control->version = LOOM_LAYOUT_VERSION;
    control->header_size = sizeof *control;
    control->total_size = LOOM_CONTROL_SIZE;
    control->budget = arena->budget;
    control->full = arena->full;
    control->wait_ns = arena->wait_ns;
    memcpy(control->spill, arena->spill, sizeof control->spill);
    control->participants = LOOM_PARTICIPANTS;
    control->segments = LOOM_SEGMENTS;
    control->tokens = LOOM_TOKENS;
    atomic_store_explicit(&control->next_sequence, 1, memory_order_relaxed);
    atomic_store_explicit(&control->next_generation, 1, memory_order_relaxed);
    code = loom_os_boot_id(control->boot_id);
    if (!code) code = slot_fill(arena, LOOM_NODE, 0);
    if (code) return code;
    atomic_store_explicit(&control->magic, LOOM_CONTROL_MAGIC, memory_order_release);
    snprintf(link, sizeof link, "/proc/self/fd/%d", arena->fd);
    if (linkat(AT_FDCWD, link, AT_FDCWD, path, AT_SYMLINK_FOLLOW)) return errno == EEXIST ? LOOM_E_EXISTS : LOOM_E_OS;
    LOOM_STEP(CREATE_LINKED);
    return LOOM_OK;
}

int loom_arena_create(const char *name, uint64_t budget, const loom_policy *policy, loom_arena **out) {
    *out = NULL;
    const loom_policy chosen = policy ? *policy : (loom_policy){LOOM_FULL_WAIT, LOOM_WAIT_NS, NULL};
    if (chosen.full > LOOM_FULL_SPILL || (chosen.full == LOOM_FULL_SPILL) != (chosen.folder != NULL))
        return LOOM_E_USAGE;
    loom_arena *arena;
    int code = handle_new(name, &arena);
    if (code) return code;
    arena->budget = budget;
    arena->full = chosen.full;
    arena->wait_ns = chosen.wait_ns;
    code = chosen.folder ? loom_spill_make(arena, chosen.folder) : LOOM_OK;
    if (!code) {
        code = control_make(arena);
        int failed = errno;
        if (code && chosen.folder) loom_spill_remove(arena->spill, NULL);
        errno = failed;
    }
    if (code) {
        int failed = errno;
        loom_free_handle(arena);
        errno = failed;
        return code;
    }
    *out = arena;
    return LOOM_OK;
}

static int control_open(loom_arena *arena) {
    char path[LOOM_PATH_MAX];
    loom_os_path(path, sizeof path, arena->name, 0);
    arena->fd = open(path, O_RDWR | O_CLOEXEC | O_NOFOLLOW);
    if (arena->fd < 0)
        return errno == ENOENT ? LOOM_E_NOT_FOUND : errno == EACCES || errno == EPERM ? LOOM_E_DENIED
                                                : errno == ELOOP                      ? LOOM_E_CORRUPT
                                                                                      : LOOM_E_OS;
    uint64_t size;
    int code = loom_os_check_file(arena->fd, &size);
    if (code) return code;
    struct loom_control header;
    ssize_t got = pread(arena->fd, &header, sizeof header, 0);
    if (got < 0) return LOOM_E_OS;
    if (got < (ssize_t)sizeof header || atomic_load_explicit(&header.magic, memory_order_relaxed) != LOOM_CONTROL_MAGIC)
        return LOOM_E_CORRUPT;
    if (header.version != LOOM_LAYOUT_VERSION) return LOOM_E_VERSION;
    if (header.header_size != sizeof header || header.total_size != LOOM_CONTROL_SIZE || size != LOOM_CONTROL_SIZE ||
        header.participants != LOOM_PARTICIPANTS || header.segments != LOOM_SEGMENTS || header.tokens != LOOM_TOKENS)
        return LOOM_E_CORRUPT;
    if (header.full > LOOM_FULL_SPILL || !loom_spill_ok(header.spill, arena->name) ||
        (header.full == LOOM_FULL_SPILL) != (header.spill[0] != '\0'))
        return LOOM_E_CORRUPT;
    uint64_t boot_id[2];
    code = loom_os_boot_id(boot_id);
    if (code) return code;
    if (memcmp(boot_id, header.boot_id, sizeof boot_id)) return LOOM_E_NOT_FOUND; /* of an earlier boot */
    code = loom_os_reserve(arena->fd, 0, LOOM_TOKENS_OFFSET); /* in case somebody punched a hole: no SIGBUS */
    if (!code) code = handle_map(arena);
    if (code) return code;
    arena->budget = header.budget;
    arena->full = header.full;
    arena->wait_ns = header.wait_ns;
    memcpy(arena->spill, header.spill, sizeof arena->spill);
    arena->epoch_seen = atomic_load_explicit(&arena->control->epoch, memory_order_acquire);
    arena->pressure_seen = atomic_load_explicit(&arena->control->pressure, memory_order_relaxed);
    return slot_claim(arena);
}

int loom_arena_attach(const char *name, loom_arena **out) {
    *out = NULL;
    loom_arena *arena;
    int code = handle_new(name, &arena);
    if (code) return code;
    code = control_open(arena);
    if (code) {
        int failed = errno;
        loom_free_handle(arena);
        errno = failed;
        return code;
    }
    *out = arena;
    return LOOM_OK;
}

/* --- Closing ---------------------------------------------------------------------------------------------------- */

/* No view is left: give back, hand on or keep, then free the slot and the handle. */
void loom_finish_close_locked(loom_arena *arena) {
    if (!arena->abandoned) {
        LOOM_STEP(CLOSE_BEGUN);
        loom_tokens_poll_locked(arena, UINT32_MAX);
        loom_pending_poll_locked(arena, UINT32_MAX);
        while (arena->own_count) {
            struct map *map = arena->own[arena->own_count - 1];
            if (!map->leased) {
                loom_own_give_locked(arena, map);
                continue;
            }
            struct loom_segment_entry *entry = &arena->entries[map->index];
            uint64_t generation = atomic_load_explicit(&entry->word, memory_order_relaxed) >> 24;
            atomic_store_explicit(&entry->word, loom_entry_word(generation, LOOM_NODE, LOOM_SEGMENT_ORPHANED),
                                  memory_order_release);
            arena->own_count--;
        }
        LOOM_STEP(CLOSE_GIVEN);
        uint64_t revoked;
        bool done = loom_revoke_addressed_locked(arena, arena->me, &revoked) == LOOM_OK && !arena->flying_count;
        LOOM_STEP(CLOSE_REVOKED);
        if (done) {
            loom_slot_free(arena, arena->me);
        } else {
            struct loom_participant *row = &arena->participants[arena->me];
            uint64_t word = atomic_load_explicit(&row->word, memory_order_relaxed);
            atomic_store_explicit(&row->word, (word & ~UINT64_C(0xff)) | LOOM_PARTICIPANT_CLOSED, memory_order_release);
        }
        LOOM_STEP(CLOSE_FREED);
    }
    pthread_mutex_unlock(&arena->mutex);
    loom_free_handle(arena);
}

void loom_arena_close(loom_arena *arena) {
    if (!arena || loom_enter(arena)) return; /* in a forked child all stays mapped: inherited views may be read */
    arena->closed = true;
    if (arena->views)
        loom_leave(arena);
    else
        loom_finish_close_locked(arena);
}

void loom_arena_abandon(loom_arena *arena) {
    if (loom_enter(arena)) return;
    struct loom_participant *row = &arena->participants[arena->me];
    uint64_t word = atomic_load_explicit(&row->word, memory_order_relaxed);
    atomic_store_explicit(&row->word, (word & ~UINT64_C(0xff)) | LOOM_PARTICIPANT_CLOSED, memory_order_release);
    arena->closed = arena->abandoned = true;
    if (arena->views)
        loom_leave(arena);
    else
        loom_finish_close_locked(arena);
}

/* --- Facts ------------------------------------------------------------------------------------------------------ */

uint32_t loom_arena_participant(const loom_arena *arena) { return arena->me; }
uint64_t loom_arena_budget(const loom_arena *arena) { return arena->budget; }
const char *loom_arena_name(const loom_arena *arena) { return arena->name; }
uint32_t loom_arena_full(const loom_arena *arena) { return arena->full; }
uint64_t loom_arena_wait_ns(const loom_arena *arena) { return arena->wait_ns; }
const char *loom_arena_spill(const loom_arena *arena) { return arena->spill; }

int loom_arena_count_copied(loom_arena *arena, uint64_t bytes) {
    int code = loom_enter(arena);
    if (code) return code;
    loom_count(&arena->participants[arena->me].counters.bytes_copied, bytes);
    loom_leave(arena);
    return LOOM_OK;
}
