/* ring.c -- the shared-memory mailbox: lanes, bells, and who sleeps. The specification is loom_ring.h. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "loom_arena.h" /* loom_process_start_time */
#include "loom_ring.h"

#define PATH_SIZE 512
#define BELLS_MAX 480 /* characters of a path to which a lane's number is added */
#define WORDS (LOOM_LANES / 64)
#define BATCH 64 /* records of one lane before the next lane gets its turn */

void (*loom_ring_step_hook)(int step);

#define STEP(name)                                                                                                    \
    do {                                                                                                              \
        if (__builtin_expect(loom_ring_step_hook != NULL, 0)) loom_ring_step_hook(LOOM_RING_STEP_##name);             \
    } while (0)

const char *loom_ring_step_name(int step) {
    static const char *const names[] = {
#define NAME(name) #name,
        LOOM_RING_STEPS(NAME)
#undef NAME
    };
    static char lower[LOOM_RING_STEP_COUNT][24];
    if (step < 0 || step >= LOOM_RING_STEP_COUNT) return NULL;
    for (size_t i = 0; names[step][i] && i < sizeof lower[0] - 1; i++)
        lower[step][i] = names[step][i] == '_' ? '_' : (char)(names[step][i] | 0x20);
    return lower[step];
}

const char *loom_ring_text(int code) {
    switch (code) {
        case LOOM_RING_OK: return "done";
        case LOOM_RING_EMPTY: return "nothing there";
        case LOOM_RING_FULL: return "no room";
        case LOOM_RING_LARGE: return "the message is larger than a record may be";
        case LOOM_RING_CORRUPT: return "the mailbox file is damaged";
        case LOOM_RING_NOT_FOUND: return "there is no such mailbox";
        case LOOM_RING_DENIED: return "the mailbox file belongs to another user, or is open to others";
        case LOOM_RING_USAGE: return "a bad name or lane";
        case LOOM_RING_OS: return "a system call failed";
        case LOOM_RING_MEMORY: return "out of memory";
        case LOOM_RING_NOBODY: return "nobody has opened that lane";
        default: return "unknown code";
    }
}

/* --- Files ------------------------------------------------------------------------------------------------------ */

static bool mail_path(char *path, const char *name) {
    size_t length = name ? strnlen(name, 200) : 0;
    if (!length || length == 200 || strchr(name, '/')) return false;
    snprintf(path, PATH_SIZE, "/dev/shm/%s.inbox", name);
    return true;
}

static int reserve(int fd, uint64_t offset, uint64_t size) {
    int failed;
    do failed = posix_fallocate(fd, (off_t)offset, (off_t)size);
    while (failed == EINTR);
    if (!failed) return LOOM_RING_OK;
    errno = failed;
    return failed == ENOSPC || failed == EDQUOT || failed == ENOMEM ? LOOM_RING_FULL : LOOM_RING_OS;
}

/* A FIFO, made when it is not there: read-write, so that it is never without a reader. */
static int bell_open(const char *path, bool make) {
    if (make && mkfifo(path, 0600) && errno != EEXIST) return -1;
    int fd = open(path, O_RDWR | O_NONBLOCK | O_CLOEXEC | O_NOFOLLOW);
    struct stat about;
    if (fd >= 0 && (fstat(fd, &about) || !S_ISFIFO(about.st_mode))) {
        close(fd);
        errno = EEXIST;
        return -1;
    }
    return fd;
}

static void bell_ring(int fd) {
    int kept = errno;
    if (fd >= 0 && write(fd, "!", 1) < 0) errno = kept; /* full is as good as rung */
}

static void bell_empty(int fd) {
    int kept = errno;
    char rung[64];
    while (read(fd, rung, sizeof rung) == (ssize_t)sizeof rung) continue;
    errno = kept;
}

/* --- One ring --------------------------------------------------------------------------------------------------- */

struct record {
    uint32_t size, kind;
};

/* Write one record at *tail when there is room; *tail moves past it. The caller publishes. */
static int ring_write(unsigned char *ring, uint64_t *tail, uint64_t head, const void *data, uint32_t size) {
    if (size > LOOM_RECORD_MAX) return LOOM_RING_LARGE;
    uint64_t used = *tail - head, need = LOOM_RECORD_HEADER + ((uint64_t)size + 7) / 8 * 8;
    if (used > LOOM_RING_SIZE || head % 8 || *tail % 8) return LOOM_RING_CORRUPT;
    uint64_t at = *tail % LOOM_RING_SIZE, rest = LOOM_RING_SIZE - at;
    uint64_t pad = rest < need ? rest : 0;
    if (pad + need > LOOM_RING_SIZE - used) return LOOM_RING_FULL;
    if (pad) {
        memcpy(ring + at, &(struct record){(uint32_t)(pad - LOOM_RECORD_HEADER), LOOM_RECORD_PAD}, LOOM_RECORD_HEADER);
        *tail += pad;
        at = 0;
        STEP(SEND_PADDED);
    }
    memcpy(ring + at, &(struct record){size, LOOM_RECORD_DATA}, LOOM_RECORD_HEADER);
    if (size) memcpy(ring + at + LOOM_RECORD_HEADER, data, size);
    *tail += need;
    return LOOM_RING_OK;
}

/* Show the record at *head, skipping a pad; `after`: the count past it. */
static int ring_read(const unsigned char *ring, uint64_t *head, uint64_t tail, const void **data, uint32_t *size,
                     uint64_t *after) {
    for (int pads = 0;; pads++) {
        uint64_t used = tail - *head;
        if (!used) return LOOM_RING_EMPTY;
        if (used > LOOM_RING_SIZE || used < LOOM_RECORD_HEADER || tail % 8 || *head % 8) return LOOM_RING_CORRUPT;
        uint64_t at = *head % LOOM_RING_SIZE, rest = LOOM_RING_SIZE - at;
        struct record record;
        memcpy(&record, ring + at, LOOM_RECORD_HEADER); /* once: the other side might change it */
        uint64_t whole = LOOM_RECORD_HEADER + ((uint64_t)record.size + 7) / 8 * 8;
        if (whole > used || whole > rest) return LOOM_RING_CORRUPT;
        if (record.kind == LOOM_RECORD_DATA && record.size <= LOOM_RECORD_MAX) {
            *data = ring + at + LOOM_RECORD_HEADER;
            *size = record.size;
            *after = *head + whole;
            return LOOM_RING_OK;
        }
        if (record.kind != LOOM_RECORD_PAD || whole != rest || pads) return LOOM_RING_CORRUPT;
        *head += whole;
    }
}

/* --- The receiver ----------------------------------------------------------------------------------------------- */

struct place { /* what the receiver knows of a lane */
    uint64_t head, answer_tail, session;
    int bell; /* its descriptor + 1, so that a lane that was never looked at is all zeros, and its page untouched */
    bool known, broken;
};

struct loom_inbox {
    struct loom_inbox_head *mail;
    char path[PATH_SIZE], bells[PATH_SIZE];
    pid_t owner;
    int fd, bell;
    int spare;               /* a descriptor to give up when a bell has to be rung and there is no other left */
    uint32_t sleep;          /* the even number that says awake */
    uint64_t mine[WORDS];    /* lanes to look at */
    uint64_t waits[WORDS];   /* lanes whose answers wait for room */
    uint32_t lane, in_a_row; /* the one being read, and how many records of it were */
    uint64_t after;          /* of the record shown */
    bool reading;
    struct place places[LOOM_LANES];
};

static struct loom_lane_control *lane_of(struct loom_inbox_head *mail, uint32_t lane) {
    return (struct loom_lane_control *)((unsigned char *)mail + LOOM_LANES_OFFSET + (uint64_t)lane * LOOM_LANE_SIZE);
}
static unsigned char *requests_of(struct loom_lane_control *control) {
    return (unsigned char *)control + LOOM_LANE_CONTROL;
}
static unsigned char *answers_of(struct loom_lane_control *control) {
    return (unsigned char *)control + LOOM_LANE_CONTROL + LOOM_RING_SIZE;
}

static void lane_bell_path(char *path, const char *bells, uint32_t lane) {
    snprintf(path, PATH_SIZE, "%.480s.%u", bells, lane);
}

static void mailbox_bell_path(char *path, const char *bells) { snprintf(path, PATH_SIZE, "%.480s.bell", bells); }

int loom_inbox_create(const char *name, const char *bells, loom_inbox **out) {
    char bell[PATH_SIZE];
    loom_inbox *made = calloc(1, sizeof *made);
    if (!made) return LOOM_RING_MEMORY;
    made->fd = made->bell = made->spare = -1;
    int code = LOOM_RING_USAGE;
    void *mail = MAP_FAILED;
    bool own = false;
    if (!mail_path(made->path, name) || strlen(bells) > BELLS_MAX) goto failed;
    strcpy(made->bells, bells);
    mailbox_bell_path(bell, bells);
    code = LOOM_RING_OS;
    made->fd = open(made->path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (made->fd < 0) goto failed;
    own = true;
    if (ftruncate(made->fd, (off_t)LOOM_INBOX_SIZE)) goto failed;
    if ((code = reserve(made->fd, 0, LOOM_LANES_OFFSET))) goto failed;
    code = LOOM_RING_OS;
    mail = mmap(NULL, LOOM_INBOX_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, made->fd, 0);
    if (mail == MAP_FAILED) goto failed;
    made->bell = bell_open(bell, true);
    if (made->bell < 0) goto failed;
    made->owner = getpid();
    made->spare = dup(made->fd);
    made->mail = mail;
    made->mail->version = LOOM_INBOX_VERSION;
    made->mail->lanes = LOOM_LANES;
    made->mail->lane_size = LOOM_LANE_SIZE;
    made->mail->ring_size = LOOM_RING_SIZE;
    atomic_store_explicit(&made->mail->magic, LOOM_INBOX_MAGIC, memory_order_release);
    *out = made;
    return LOOM_RING_OK;
failed:;
    int kept = errno;
    if (mail != MAP_FAILED) munmap(mail, LOOM_INBOX_SIZE);
    if (own) unlink(made->path);
    if (made->fd >= 0) close(made->fd);
    free(made);
    errno = kept;
    return code;
}

void loom_inbox_close(loom_inbox *mailbox) {
    char bell[PATH_SIZE];
    mailbox_bell_path(bell, mailbox->bells);
    if (getpid() == mailbox->owner) { /* not in a fork of it */
        unlink(bell);
        unlink(mailbox->path);
    }
    for (uint32_t lane = 0; lane < LOOM_LANES; lane++)
        if (mailbox->places[lane].bell) close(mailbox->places[lane].bell - 1);
    munmap(mailbox->mail, LOOM_INBOX_SIZE);
    if (mailbox->spare >= 0) close(mailbox->spare);
    close(mailbox->bell);
    close(mailbox->fd);
    free(mailbox);
}

int loom_inbox_remove(const char *name) {
    char path[PATH_SIZE];
    if (!mail_path(path, name)) return LOOM_RING_USAGE;
    return unlink(path) && errno != ENOENT ? LOOM_RING_OS : LOOM_RING_OK;
}

int loom_inbox_bell(const loom_inbox *mailbox) { return mailbox->bell; }

/* The first look at a lane: its pages must be there before they are touched. */
static int place_know(loom_inbox *mailbox, uint32_t lane) {
    struct place *place = &mailbox->places[lane];
    if (place->known) return LOOM_RING_OK;
    int code = reserve(mailbox->fd, LOOM_LANES_OFFSET + (uint64_t)lane * LOOM_LANE_SIZE, LOOM_LANE_SIZE);
    place->known = code == LOOM_RING_OK;
    return code;
}

static void ring_sender(loom_inbox *mailbox, struct loom_lane_control *control, uint32_t lane) {
    struct place *place = &mailbox->places[lane];
    uint64_t session = atomic_load_explicit(&control->session, memory_order_acquire);
    if (!place->bell || place->session != session) { /* another sender, another FIFO */
        char path[PATH_SIZE];
        lane_bell_path(path, mailbox->bells, lane);
        if (place->bell) close(place->bell - 1);
        place->bell = bell_open(path, false) + 1; /* none: the sender is gone */
        place->session = session;
        if (!place->bell && (errno == EMFILE || errno == ENFILE) && mailbox->spare >= 0) {
            close(mailbox->spare); /* the bell is rung all the same, and opened anew the next time */
            int bell = bell_open(path, false);
            bell_ring(bell);
            if (bell >= 0) close(bell);
            mailbox->spare = dup(mailbox->fd);
            return;
        }
    }
    bell_ring(place->bell - 1);
}

/* The lane is read as far as it will be for now. */
static void lane_leave(loom_inbox *mailbox) {
    if (!mailbox->reading) return;
    mailbox->reading = false;
    struct loom_lane_control *control = lane_of(mailbox->mail, mailbox->lane);
    atomic_thread_fence(memory_order_seq_cst);
    if (!atomic_load_explicit(&control->sender_waits, memory_order_relaxed)) return;
    if (atomic_exchange_explicit(&control->sender_waits, 0, memory_order_seq_cst)) {
        STEP(PAUSE_WOKEN);
        ring_sender(mailbox, control, mailbox->lane);
    }
}

/* The next lane after the present one that has something; LOOM_LANES when there is none. */
static uint32_t lane_find(loom_inbox *mailbox) {
    uint32_t start = (mailbox->lane + 1) % LOOM_LANES;
    for (uint32_t i = 0; i <= WORDS; i++) {
        uint32_t word = (start / 64 + i) % WORDS;
        if (atomic_load_explicit(&mailbox->mail->ready[word], memory_order_relaxed))
            mailbox->mine[word] |= atomic_exchange_explicit(&mailbox->mail->ready[word], 0, memory_order_seq_cst);
        uint64_t bits = mailbox->mine[word];
        if (i == 0) bits &= ~UINT64_C(0) << start % 64;
        if (bits) return word * 64 + (uint32_t)__builtin_ctzll(bits);
    }
    return LOOM_LANES;
}

static void lane_done(loom_inbox *mailbox, uint32_t lane) {
    mailbox->mine[lane / 64] &= ~(UINT64_C(1) << lane % 64);
}

int loom_inbox_next(loom_inbox *mailbox, uint32_t *lane, const void **data, uint32_t *size) {
    for (;;) {
        if (!mailbox->reading) {
            uint32_t found = lane_find(mailbox);
            if (found == LOOM_LANES) return LOOM_RING_EMPTY;
            mailbox->lane = *lane = found;
            mailbox->in_a_row = 0;
            STEP(NEXT_CLAIMED);
            int code = mailbox->places[found].broken ? LOOM_RING_EMPTY : place_know(mailbox, found);
            if (code) {
                lane_done(mailbox, found);
                if (code == LOOM_RING_EMPTY) continue;
                return code;
            }
            mailbox->reading = true;
        }
        struct place *place = &mailbox->places[mailbox->lane];
        struct loom_lane_control *control = lane_of(mailbox->mail, mailbox->lane);
        int code = LOOM_RING_FULL; /* of this lane's turn */
        if (mailbox->in_a_row < BATCH) {
            uint64_t tail = atomic_load_explicit(&control->request_tail, memory_order_acquire);
            code = ring_read(requests_of(control), &place->head, tail, data, size, &mailbox->after);
        }
        if (code == LOOM_RING_OK) {
            *lane = mailbox->lane;
            STEP(NEXT_SHOWN);
            return code;
        }
        if (code != LOOM_RING_FULL) lane_done(mailbox, mailbox->lane);
        lane_leave(mailbox);
        if (code == LOOM_RING_CORRUPT) {
            place->broken = true;
            *lane = mailbox->lane;
            return code;
        }
    }
}

void loom_inbox_take(loom_inbox *mailbox) {
    struct loom_lane_control *control = lane_of(mailbox->mail, mailbox->lane);
    mailbox->places[mailbox->lane].head = mailbox->after;
    mailbox->in_a_row++;
    atomic_store_explicit(&control->request_head, mailbox->after, memory_order_release);
    STEP(TAKE_TAKEN);
}

void loom_inbox_pause(loom_inbox *mailbox) { lane_leave(mailbox); }

int loom_inbox_answer(loom_inbox *mailbox, uint32_t lane, const void *data, uint32_t size) {
    if (lane >= LOOM_LANES) return LOOM_RING_USAGE;
    struct place *place = &mailbox->places[lane];
    if (place->broken) return LOOM_RING_CORRUPT;
    int code = place_know(mailbox, lane);
    if (code) return code == LOOM_RING_FULL ? LOOM_RING_NOBODY : code; /* whoever opened it had reserved it */
    struct loom_lane_control *control = lane_of(mailbox->mail, lane);
    if (!atomic_load_explicit(&control->sender, memory_order_relaxed)) return LOOM_RING_NOBODY;
    uint64_t tail;
    for (bool again = false;; again = true) {
        uint64_t head = atomic_load_explicit(&control->answer_head, memory_order_acquire);
        tail = place->answer_tail;
        code = ring_write(answers_of(control), &tail, head, data, size);
        if (code != LOOM_RING_FULL || again) break;
        atomic_store_explicit(&control->receiver_waits, 1, memory_order_seq_cst);
        atomic_thread_fence(memory_order_seq_cst);
    }
    if (code) {
        if (code == LOOM_RING_FULL) mailbox->waits[lane / 64] |= UINT64_C(1) << lane % 64;
        return code;
    }
    mailbox->waits[lane / 64] &= ~(UINT64_C(1) << lane % 64);
    STEP(ANSWER_WRITTEN);
    place->answer_tail = tail;
    atomic_store_explicit(&control->answer_tail, tail, memory_order_release);
    STEP(ANSWER_PUBLISHED);
    atomic_thread_fence(memory_order_seq_cst);
    if (atomic_load_explicit(&control->sender_sleeping, memory_order_relaxed) &&
        atomic_exchange_explicit(&control->sender_sleeping, 0, memory_order_seq_cst)) {
        STEP(ANSWER_WOKEN);
        ring_sender(mailbox, control, lane);
        STEP(ANSWER_RUNG);
    }
    return LOOM_RING_OK;
}

int loom_inbox_reaches(loom_inbox *mailbox, uint32_t lane) {
    if (lane >= LOOM_LANES || mailbox->places[lane].broken || place_know(mailbox, lane)) return 0;
    struct loom_lane_control *control = lane_of(mailbox->mail, lane);
    uint64_t pid = atomic_load_explicit(&control->sender, memory_order_acquire), start;
    if (!pid || pid > UINT32_MAX || loom_process_start_time((uint32_t)pid, &start)) return 0;
    return start == atomic_load_explicit(&control->sender_start, memory_order_relaxed);
}

/* Whether an answer that found no room would find some now. */
static bool room_again(loom_inbox *mailbox) {
    for (uint32_t word = 0; word < WORDS; word++)
        for (uint64_t bits = mailbox->waits[word]; bits; bits &= bits - 1) {
            struct loom_lane_control *control = lane_of(mailbox->mail, word * 64 + (uint32_t)__builtin_ctzll(bits));
            if (!atomic_load_explicit(&control->receiver_waits, memory_order_seq_cst)) return true;
        }
    return false;
}

int loom_inbox_ready(const loom_inbox *mailbox) {
    for (uint32_t word = 0; word < WORDS; word++)
        if (mailbox->mine[word] | atomic_load_explicit(&mailbox->mail->ready[word], memory_order_acquire)) return 1;
    return 0;
}

int loom_inbox_rest(loom_inbox *mailbox) {
    lane_leave(mailbox);
    mailbox->sleep += 2;
    atomic_store_explicit(&mailbox->mail->sleeping, mailbox->sleep - 1, memory_order_seq_cst);
    STEP(REST_SET);
    uint64_t any = 0;
    for (uint32_t word = 0; word < WORDS; word++)
        any |= mailbox->mine[word] | atomic_load_explicit(&mailbox->mail->ready[word], memory_order_seq_cst);
    if (!any && !room_again(mailbox)) return 1;
    atomic_store_explicit(&mailbox->mail->sleeping, mailbox->sleep, memory_order_relaxed);
    return 0;
}

void loom_inbox_wake(loom_inbox *mailbox) {
    atomic_store_explicit(&mailbox->mail->sleeping, mailbox->sleep, memory_order_relaxed);
    bell_empty(mailbox->bell);
}

/* --- The sender ------------------------------------------------------------------------------------------------- */

struct loom_lane {
    struct loom_inbox_head *mail;
    struct loom_lane_control *control;
    uint64_t tail, answer_head, after;
    uint32_t lane;
    int bell, receiver_bell;
    bool broken;
    char path[PATH_SIZE];
};

int loom_lane_open(const char *name, const char *bells, uint32_t lane, loom_lane **out) {
    char path[PATH_SIZE], bell[PATH_SIZE];
    if (!mail_path(path, name) || lane >= LOOM_LANES || strlen(bells) > BELLS_MAX) return LOOM_RING_USAGE;
    loom_lane *made = calloc(1, sizeof *made);
    if (!made) return LOOM_RING_MEMORY;
    made->bell = made->receiver_bell = -1;
    void *mail = MAP_FAILED, *control = MAP_FAILED;
    uint64_t offset = LOOM_LANES_OFFSET + (uint64_t)lane * LOOM_LANE_SIZE;
    int code = LOOM_RING_OS, fd = open(path, O_RDWR | O_CLOEXEC | O_NOFOLLOW);
    struct stat about;
    if (fd < 0) {
        code = errno == ENOENT ? LOOM_RING_NOT_FOUND : errno == EACCES ? LOOM_RING_DENIED : LOOM_RING_OS;
        goto failed;
    }
    if (fstat(fd, &about)) goto failed;
    code = LOOM_RING_DENIED;
    if (about.st_uid != geteuid() || about.st_mode & (S_IRWXG | S_IRWXO)) goto failed;
    code = LOOM_RING_CORRUPT;
    if (!S_ISREG(about.st_mode) || (uint64_t)about.st_size != LOOM_INBOX_SIZE) goto failed;
    if ((code = reserve(fd, offset, LOOM_LANE_SIZE))) goto failed;
    STEP(OPEN_RESERVED);
    code = LOOM_RING_OS;
    mail = mmap(NULL, LOOM_LANES_OFFSET, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    control = mmap(NULL, LOOM_LANE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, (off_t)offset);
    if (mail == MAP_FAILED || control == MAP_FAILED) goto failed;
    made->mail = mail;
    made->control = control;
    code = LOOM_RING_CORRUPT;
    if (atomic_load_explicit(&made->mail->magic, memory_order_acquire) != LOOM_INBOX_MAGIC ||
        made->mail->version != LOOM_INBOX_VERSION || made->mail->lane_size != LOOM_LANE_SIZE ||
        made->mail->ring_size != LOOM_RING_SIZE)
        goto failed;
    code = LOOM_RING_OS;
    mailbox_bell_path(bell, bells);
    lane_bell_path(made->path, bells, lane);
    made->receiver_bell = bell_open(bell, false);
    if (made->receiver_bell < 0) {
        if (errno == ENOENT) code = LOOM_RING_NOT_FOUND; /* the receiver is just going */
        goto failed;
    }
    unlink(made->path); /* a predecessor's; the receiver notices by `session` */
    made->bell = bell_open(made->path, true);
    if (made->bell < 0) goto failed;
    made->lane = lane;
    made->tail = atomic_load_explicit(&made->control->request_tail, memory_order_relaxed);
    made->answer_head = atomic_load_explicit(&made->control->answer_head, memory_order_relaxed);
    atomic_store_explicit(&made->control->sender_sleeping, 0, memory_order_relaxed);
    atomic_store_explicit(&made->control->sender_waits, 0, memory_order_relaxed);
    uint64_t start = 0;
    loom_process_start_time((uint32_t)getpid(), &start);
    atomic_store_explicit(&made->control->sender_start, start, memory_order_relaxed);
    atomic_fetch_add_explicit(&made->control->session, 1, memory_order_acq_rel);
    STEP(OPEN_SESSION);
    atomic_store_explicit(&made->control->sender, (uint64_t)getpid(), memory_order_release);
    close(fd);
    *out = made;
    return LOOM_RING_OK;
failed:;
    int kept = errno;
    if (mail != MAP_FAILED) munmap(mail, LOOM_LANES_OFFSET);
    if (control != MAP_FAILED) munmap(control, LOOM_LANE_SIZE);
    if (made->receiver_bell >= 0) close(made->receiver_bell);
    if (fd >= 0) close(fd);
    free(made);
    errno = kept;
    return code;
}

void loom_lane_close(loom_lane *lane) {
    uint64_t own = (uint64_t)getpid();
    if (atomic_compare_exchange_strong_explicit(&lane->control->sender, &own, 0, memory_order_acq_rel,
                                                memory_order_relaxed))
        unlink(lane->path); /* not in a fork of the process that opened it, nor when there is a successor */
    close(lane->bell);
    close(lane->receiver_bell);
    munmap(lane->mail, LOOM_LANES_OFFSET);
    munmap(lane->control, LOOM_LANE_SIZE);
    free(lane);
}

int loom_lane_bell(const loom_lane *lane) { return lane->bell; }

static void wake_receiver(loom_lane *lane) {
    uint32_t sleep = atomic_load_explicit(&lane->mail->sleeping, memory_order_seq_cst);
    if (!(sleep & 1)) return;
    bell_ring(lane->receiver_bell);
    STEP(SEND_RUNG);
    atomic_compare_exchange_strong_explicit(&lane->mail->sleeping, &sleep, sleep + 1, memory_order_seq_cst,
                                            memory_order_relaxed);
    STEP(SEND_SAID);
}

int loom_lane_send(loom_lane *lane, const void *data, uint32_t size) {
    if (lane->broken) return LOOM_RING_CORRUPT;
    uint64_t tail;
    int code;
    for (bool again = false;; again = true) {
        uint64_t head = atomic_load_explicit(&lane->control->request_head, memory_order_acquire);
        tail = lane->tail;
        code = ring_write(requests_of(lane->control), &tail, head, data, size);
        if (code != LOOM_RING_FULL || again) break;
        atomic_store_explicit(&lane->control->sender_waits, 1, memory_order_seq_cst);
        atomic_thread_fence(memory_order_seq_cst);
    }
    if (code) {
        lane->broken |= code == LOOM_RING_CORRUPT;
        return code;
    }
    STEP(SEND_WRITTEN);
    lane->tail = tail;
    atomic_store_explicit(&lane->control->request_tail, tail, memory_order_release);
    STEP(SEND_PUBLISHED);
    atomic_fetch_or_explicit(&lane->mail->ready[lane->lane / 64], UINT64_C(1) << lane->lane % 64, memory_order_seq_cst);
    STEP(SEND_READY);
    wake_receiver(lane);
    return LOOM_RING_OK;
}

int loom_lane_ready(const loom_lane *lane) {
    uint64_t head = atomic_load_explicit(&lane->control->answer_head, memory_order_relaxed);
    return atomic_load_explicit(&lane->control->answer_tail, memory_order_acquire) != head;
}

int loom_lane_next(loom_lane *lane, const void **data, uint32_t *size) {
    if (lane->broken) return LOOM_RING_CORRUPT;
    uint64_t tail = atomic_load_explicit(&lane->control->answer_tail, memory_order_acquire);
    int code = ring_read(answers_of(lane->control), &lane->answer_head, tail, data, size, &lane->after);
    lane->broken |= code == LOOM_RING_CORRUPT;
    return code;
}

void loom_lane_take(loom_lane *lane) {
    lane->answer_head = lane->after;
    atomic_store_explicit(&lane->control->answer_head, lane->after, memory_order_release);
}

void loom_lane_pause(loom_lane *lane) {
    atomic_thread_fence(memory_order_seq_cst);
    if (atomic_load_explicit(&lane->control->receiver_waits, memory_order_relaxed) &&
        atomic_exchange_explicit(&lane->control->receiver_waits, 0, memory_order_seq_cst))
        wake_receiver(lane);
}

int loom_lane_rest(loom_lane *lane) {
    if (lane->broken) return 1;
    loom_lane_pause(lane);
    atomic_store_explicit(&lane->control->sender_sleeping, 1, memory_order_seq_cst);
    atomic_thread_fence(memory_order_seq_cst);
    return !loom_lane_ready(lane);
}

void loom_lane_wake(loom_lane *lane) { bell_empty(lane->bell); }

int loom_lane_unread(loom_lane *lane, uint64_t *at, const void **data, uint32_t *size) {
    uint64_t head = atomic_load_explicit(&lane->control->request_head, memory_order_acquire), after;
    if (*at > head) head = *at;
    int code = ring_read(requests_of(lane->control), &head, lane->tail, data, size, &after);
    if (code == LOOM_RING_OK) *at = after;
    return code;
}
