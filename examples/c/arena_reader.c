/* arena_reader.c -- see arena_reader.h. Quoted words and step numbers are those of loom_arena.h. */
#define _POSIX_C_SOURCE 200809L
#include "arena_reader.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define PATH_SIZE (LOOM_SPILL_SIZE + 64)

/* --- Files ------------------------------------------------------------------------------------------------------ */

/* "a file owned by another user, or open to others, is refused" */
static int open_file(const char *path, int *fd, uint64_t *size) {
    *fd = open(path, O_RDWR | O_CLOEXEC | O_NOFOLLOW);
    if (*fd < 0) return errno == ENOENT ? LOOM_E_NOT_FOUND : errno == EACCES ? LOOM_E_DENIED : LOOM_E_OS;
    struct stat about;
    if (fstat(*fd, &about)) return LOOM_E_OS;
    if (!S_ISREG(about.st_mode)) return LOOM_E_CORRUPT;
    if (about.st_uid != geteuid() || about.st_mode & (S_IRWXG | S_IRWXO)) return LOOM_E_DENIED;
    *size = (uint64_t)about.st_size;
    return LOOM_OK;
}

/* "Pages are reserved before anything touches them": running out of memory is a code here and never a SIGBUS. */
static int reserve(int fd, uint64_t offset, uint64_t size) {
    int failed;
    do failed = posix_fallocate(fd, (off_t)offset, (off_t)size);
    while (failed == EINTR);
    errno = failed;
    return !failed ? LOOM_OK : failed == ENOSPC ? LOOM_E_FULL : LOOM_E_OS;
}

static int read_text(const char *path, char *into, size_t size) {
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return LOOM_E_OS;
    ssize_t got = read(fd, into, size - 1);
    close(fd);
    into[got > 0 ? got : 0] = '\0';
    return got > 0 ? LOOM_OK : LOOM_E_OS;
}

/* "the kernel's boot id, as 16 bytes": the digits of its text form, two to a byte */
static int boot_id(unsigned char id[16]) {
    char text[64];
    if (read_text("/proc/sys/kernel/random/boot_id", text, sizeof text)) return LOOM_E_OS;
    size_t bytes = 0;
    for (const char *at = text; *at && bytes < 16;) {
        unsigned value;
        if (*at == '-') {
            at++;
        } else if (sscanf(at, "%2x", &value) == 1) {
            id[bytes++] = (unsigned char)value;
            at += 2;
        } else {
            break;
        }
    }
    return bytes == 16 ? LOOM_OK : LOOM_E_OS;
}

/* "field 22 of /proc/PID/stat": the 20th after the program's name, which is in parentheses and may contain any */
static int start_time(uint64_t *ticks) {
    char text[1024];
    if (read_text("/proc/self/stat", text, sizeof text)) return LOOM_E_OS;
    const char *at = strrchr(text, ')');
    for (int field = 2; at && field < 22; field++) at = strchr(at + 1, ' ');
    if (!at) return LOOM_E_OS;
    *ticks = strtoull(at, NULL, 10);
    return LOOM_OK;
}

/* --- Tables of the control file --------------------------------------------------------------------------------- */

static struct loom_participant *row_of(const struct arena *arena, uint64_t participant) {
    return (struct loom_participant *)(void *)(arena->control + LOOM_PARTICIPANTS_OFFSET) + participant;
}

static struct loom_segment_entry *entry_of(const struct arena *arena, uint64_t segment) {
    return (struct loom_segment_entry *)(void *)(arena->control + LOOM_SEGMENTS_OFFSET) + segment;
}

static uint64_t table_offset(uint64_t participant) {
    return LOOM_TOKENS_OFFSET + participant * LOOM_TOKENS * sizeof(struct loom_token);
}

static uint64_t state_of(uint64_t word) { return word & 0xff; }

/* --- Taking part ------------------------------------------------------------------------------------------------ */

static int check_control(const struct loom_control *control, uint64_t file_size) {
    if (atomic_load_explicit(&control->magic, memory_order_acquire) != LOOM_CONTROL_MAGIC) return LOOM_E_CORRUPT;
    if (control->version != LOOM_LAYOUT_VERSION) return LOOM_E_VERSION;
    if (control->header_size != sizeof *control || control->total_size != LOOM_CONTROL_SIZE ||
        file_size != LOOM_CONTROL_SIZE || control->participants != LOOM_PARTICIPANTS ||
        control->segments != LOOM_SEGMENTS || control->tokens != LOOM_TOKENS)
        return LOOM_E_CORRUPT;
    unsigned char now[16];
    if (boot_id(now)) return LOOM_E_OS;
    return memcmp(now, control->boot_id, sizeof now) ? LOOM_E_NOT_FOUND : LOOM_OK; /* of an earlier boot */
}

/* "Claim: CAS (acq_rel) FREE -> CLAIMING with the own pid, store start_time, store ACTIVE (release)." */
static int claim(struct arena *arena) {
    uint64_t ticks, pid = (uint64_t)getpid();
    int code = start_time(&ticks); /* before the claim, so that nothing can fail in mid-claim */
    if (code) return code;
    for (uint32_t i = LOOM_NODE + 1; i < LOOM_PARTICIPANTS; i++) {
        struct loom_participant *row = row_of(arena, i);
        uint64_t word = atomic_load_explicit(&row->word, memory_order_relaxed);
        if (state_of(word) != LOOM_PARTICIPANT_FREE) continue;
        uint64_t mine = (word >> 32) << 32 | pid << 8;
        if (!atomic_compare_exchange_strong_explicit(&row->word, &word, mine | LOOM_PARTICIPANT_CLAIMING,
                                                     memory_order_acq_rel, memory_order_relaxed))
            continue;
        atomic_store_explicit(&row->start_time, ticks, memory_order_release);
        atomic_store_explicit(&row->word, mine | LOOM_PARTICIPANT_ACTIVE, memory_order_release);
        arena->participant = i;
        return LOOM_OK;
    }
    return LOOM_E_SLOTS;
}

static int open_control(struct arena *arena) {
    char path[PATH_SIZE];
    snprintf(path, sizeof path, "/dev/shm/%s.ctl", arena->name);
    uint64_t size;
    int code = open_file(path, &arena->fd, &size);
    if (code) return code;
    if (size < LOOM_CONTROL_SIZE) return LOOM_E_CORRUPT;
    code = reserve(arena->fd, 0, LOOM_TOKENS_OFFSET);
    if (code) return code;
    void *at = mmap(NULL, LOOM_CONTROL_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, arena->fd, 0);
    if (at == MAP_FAILED) return LOOM_E_OS;
    arena->control = at;
    code = check_control(at, size);
    return code ? code : claim(arena);
}

static void unmap_control(struct arena *arena) {
    if (arena->control) munmap(arena->control, LOOM_CONTROL_SIZE);
    if (arena->fd >= 0) close(arena->fd);
    arena->control = NULL;
    arena->fd = -1;
}

int arena_open(struct arena *arena, const char *name) {
    *arena = (struct arena){.fd = -1};
    size_t length = strlen(name);
    if (!length || length > LOOM_NAME_MAX ||
        strspn(name, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-") != length)
        return LOOM_E_USAGE;
    memcpy(arena->name, name, length + 1);
    int code = open_control(arena);
    if (code) unmap_control(arena);
    return code;
}

void arena_close(struct arena *arena) {
    if (!arena->control) return;
    /* References may be on their way to us. To free the row now would leave them to its next user, so that is left to
     * the node, which revokes them first. */
    struct loom_participant *row = row_of(arena, arena->participant);
    uint64_t word = atomic_load_explicit(&row->word, memory_order_relaxed);
    atomic_store_explicit(&row->word, (word & ~UINT64_C(0xff)) | LOOM_PARTICIPANT_CLOSED, memory_order_release);
    unmap_control(arena);
}

/* --- Segments --------------------------------------------------------------------------------------------------- */

static bool segment_ok(const struct loom_segment *header, uint64_t index, uint64_t sequence, uint64_t file_size) {
    uint64_t least = sizeof *header + (uint64_t)header->blocks * sizeof(struct loom_block);
    return header->magic == LOOM_SEGMENT_MAGIC && header->version == LOOM_LAYOUT_VERSION &&
           header->header_size == sizeof *header && header->index == index && header->sequence == sequence &&
           header->blocks <= LOOM_BLOCKS_MAX && header->data_offset % LOOM_PAGE == 0 && header->data_offset >= least &&
           header->data_offset <= file_size && header->data_size == file_size - header->data_offset;
}

static int map_parts(struct arena_hold *hold, int fd, const struct loom_segment *header) {
    int code = reserve(fd, 0, header->data_offset);
    if (code) return code;
    char path[64]; /* "mapped from a read-only descriptor": the same file again, whatever happens to its name */
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    int data_fd = open(path, O_RDONLY | O_CLOEXEC);
    if (data_fd < 0) return LOOM_E_OS;
    void *control = mmap(NULL, header->data_offset, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    void *data = mmap(NULL, header->data_size, PROT_READ, MAP_SHARED, data_fd, (off_t)header->data_offset);
    close(data_fd);
    if (control != MAP_FAILED && data != MAP_FAILED) {
        hold->control = control;
        hold->control_size = header->data_offset;
        hold->data = data;
        hold->data_size = header->data_size;
        return LOOM_OK;
    }
    if (control != MAP_FAILED) munmap(control, header->data_offset);
    if (data != MAP_FAILED) munmap(data, header->data_size);
    return LOOM_E_OS;
}

/* "<spill>/<sequence>": `spilled` is read after the sequence. The folder is the same for as long as the arena lives. */
static void segment_path(const struct arena *arena, const struct loom_segment_entry *entry, uint64_t sequence,
                         char path[PATH_SIZE]) {
    const struct loom_control *control = (const struct loom_control *)(const void *)arena->control;
    if (atomic_load_explicit(&entry->spilled, memory_order_relaxed))
        snprintf(path, PATH_SIZE, "%.*s/%llu", (int)LOOM_SPILL_SIZE, control->spill, (unsigned long long)sequence);
    else
        snprintf(path, PATH_SIZE, "/dev/shm/%s.%llu", arena->name, (unsigned long long)sequence);
}

/* Step 2: "the entry is LIVE or ORPHANED, the file as long as its header says" */
static int map_segment(const struct arena *arena, struct arena_hold *hold) {
    struct loom_segment_entry *entry = entry_of(arena, hold->segment);
    uint64_t state = state_of(atomic_load_explicit(&entry->word, memory_order_acquire));
    uint64_t sequence = atomic_load_explicit(&entry->sequence, memory_order_acquire);
    if ((state != LOOM_SEGMENT_LIVE && state != LOOM_SEGMENT_ORPHANED) || !sequence) return LOOM_E_STALE;
    char path[PATH_SIZE];
    segment_path(arena, entry, sequence, path);
    int fd;
    uint64_t size;
    int code = open_file(path, &fd, &size);
    if (code == LOOM_E_NOT_FOUND) return LOOM_E_STALE; /* given back meanwhile */
    struct loom_segment header;
    if (!code && (pread(fd, &header, sizeof header, 0) != (ssize_t)sizeof header ||
                  !segment_ok(&header, hold->segment, sequence, size) || hold->block >= header.blocks))
        code = LOOM_E_CORRUPT;
    if (!code) code = map_parts(hold, fd, &header);
    if (fd >= 0) close(fd);
    return code;
}

static struct loom_block *block_of(const struct arena_hold *hold) {
    return (struct loom_block *)(void *)(hold->control + sizeof(struct loom_segment)) + hold->block;
}

/* --- Accept ----------------------------------------------------------------------------------------------------- */

static struct arena_hold *hold_of(const struct arena *arena, const uint64_t reference[8]) {
    struct arena_hold *hold = arena->holds;
    while (hold && (hold->segment != reference[0] || hold->block != reference[1] || hold->generation != reference[2]))
        hold = hold->next;
    return hold;
}

static void hold_drop(struct arena *arena, struct arena_hold *hold) {
    for (struct arena_hold **at = &arena->holds; *at; at = &(*at)->next) {
        if (*at == hold) {
            *at = hold->next;
            break;
        }
    }
    if (hold->control) munmap(hold->control, hold->control_size);
    if (hold->data) munmap(hold->data, hold->data_size);
    free(hold);
}

static void bit_clear(const struct arena *arena, const struct arena_hold *hold) {
    uint64_t bit = UINT64_C(1) << arena->participant % 64;
    atomic_fetch_and_explicit(&block_of(hold)->holders[arena->participant / 64], ~bit, memory_order_release);
}

/* Steps 2 to 4 for a block that is not held yet. `out` is set also when the caller has to drop it after an error. */
static int hold_begin(struct arena *arena, const uint64_t reference[8], struct arena_hold **out) {
    struct arena_hold *hold = *out = calloc(1, sizeof *hold);
    if (!hold) return LOOM_E_MEMORY;
    hold->segment = reference[0];
    hold->block = reference[1];
    hold->generation = reference[2];
    int code = map_segment(arena, hold);
    if (code) return code;
    struct loom_block *block = block_of(hold); /* "read offset, size and generation of the block once" */
    hold->offset = atomic_load_explicit(&block->offset, memory_order_relaxed);
    hold->size = atomic_load_explicit(&block->size, memory_order_relaxed);
    if (atomic_load_explicit(&block->generation, memory_order_relaxed) != hold->generation ||
        hold->offset > hold->data_size || hold->size > hold->data_size - hold->offset)
        return LOOM_E_STALE;
    uint64_t bit = UINT64_C(1) << arena->participant % 64;
    atomic_fetch_or_explicit(&block->holders[arena->participant / 64], bit, memory_order_acq_rel);
    atomic_fetch_add_explicit(&block->acquisitions, 1, memory_order_acq_rel);
    hold->next = arena->holds;
    arena->holds = hold;
    return LOOM_OK;
}

int arena_accept(struct arena *arena, const uint64_t reference[8], struct arena_view *view) {
    view->hold = NULL;
    uint64_t offset = reference[3], size = reference[4], sender = reference[5], id = reference[6];
    /* Step 1: "check every index against its table; load word (acquire): ..." */
    if (reference[0] >= LOOM_SEGMENTS || reference[1] >= LOOM_BLOCKS_MAX || sender >= LOOM_PARTICIPANTS ||
        id >= LOOM_TOKENS || id >= atomic_load_explicit(&row_of(arena, sender)->tokens_reserved, memory_order_acquire))
        return LOOM_E_STALE;
    int code = reserve(arena->fd, table_offset(sender), (id + 1) * sizeof(struct loom_token));
    if (code) return code;
    struct loom_token *token = (struct loom_token *)(void *)(arena->control + table_offset(sender)) + id;
    uint64_t word = atomic_load_explicit(&token->word, memory_order_acquire);
    uint64_t receiver = word >> 8 & 0xffff;
    if (state_of(word) != LOOM_TOKEN_INFLIGHT || word >> 24 != reference[7] ||
        (receiver != LOOM_ANY && receiver != arena->participant) ||
        atomic_load_explicit(&token->segment, memory_order_relaxed) != reference[0] ||
        atomic_load_explicit(&token->block, memory_order_relaxed) != reference[1] ||
        atomic_load_explicit(&token->block_generation, memory_order_relaxed) != reference[2])
        return LOOM_E_STALE;

    struct arena_hold *hold = hold_of(arena, reference);
    if (!hold) {
        code = hold_begin(arena, reference, &hold);
        if (code) {
            if (hold) hold_drop(arena, hold);
            return code;
        }
    }
    bool inside = offset <= hold->size && size <= hold->size - offset;
    /* Step 5: "CAS word INFLIGHT -> ACCEPTED (acq_rel). On failure the reference is stale: clear the bit" */
    uint64_t accepted = (word & ~UINT64_C(0xff)) | LOOM_TOKEN_ACCEPTED;
    if (!inside || !atomic_compare_exchange_strong_explicit(&token->word, &word, accepted, memory_order_acq_rel,
                                                            memory_order_relaxed)) {
        if (!hold->views) {
            bit_clear(arena, hold);
            hold_drop(arena, hold);
        }
        return LOOM_E_STALE;
    }
    hold->views++;
    atomic_fetch_add_explicit(&row_of(arena, arena->participant)->counters.references_accepted, 1,
                              memory_order_relaxed);
    *view = (struct arena_view){hold->data + hold->offset + offset, size, hold};
    return LOOM_OK;
}

void arena_release(struct arena *arena, struct arena_view *view) {
    struct arena_hold *hold = view->hold;
    view->hold = NULL;
    if (!hold || --hold->views) return;
    bit_clear(arena, hold);
    hold_drop(arena, hold);
}
