/* test_ring.c -- the shared-memory mailbox: order and content through every wrap, waiting for room, bells, a sender and
 * a receiver killed at every named step, damaged files; and threads for ThreadSanitizer (`ring threads`).
 *   test_ring [seed] [rounds]      test_ring threads [messages]
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "check.h"
#include "loom_ring.h"

static char name[64], bells[64];

#define OK(call)                                                                                                      \
    do {                                                                                                              \
        int code_ = (call);                                                                                           \
        if (code_) {                                                                                                  \
            fprintf(stderr, "%s:%d: %s: %s (%d)\n", __FILE__, __LINE__, #call, loom_ring_text(code_), errno);         \
            abort();                                                                                                  \
        }                                                                                                             \
    } while (0)

static int bells_left(void) {
    char path[96];
    int left = 0;
    for (int lane = -1; lane < 8; lane++) {
        if (lane < 0)
            snprintf(path, sizeof path, "%s.bell", bells);
        else
            snprintf(path, sizeof path, "%s.%d", bells, lane);
        left += access(path, F_OK) == 0;
    }
    return left;
}

static int is_rung(int bell) {
    struct pollfd look = {bell, POLLIN, 0};
    return poll(&look, 1, 0);
}

/* Message n of a sender: its number, then bytes that follow from it. */
static uint32_t compose(unsigned char *to, uint64_t n, uint32_t size) {
    memcpy(to, &n, 8);
    for (uint32_t i = 8; i < size; i++) to[i] = (unsigned char)(n * 31 + i);
    return size;
}
static void expect(const void *data, uint32_t size, uint64_t n) {
    uint64_t found;
    CHECK(size >= 8);
    memcpy(&found, data, 8);
    if (found != n) fprintf(stderr, "expected message %llu, got %llu\n", (unsigned long long)n, (unsigned long long)found);
    CHECK(found == n);
    for (uint32_t i = 8; i < size; i++) CHECK(((const unsigned char *)data)[i] == (unsigned char)(n * 31 + i));
}

static void test_errors(void) {
    loom_inbox *mailbox, *second;
    loom_lane *lane;
    CHECK(loom_lane_open(name, bells, 1, &lane) == LOOM_RING_NOT_FOUND);
    OK(loom_inbox_create(name, bells, &mailbox));
    CHECK(loom_inbox_create(name, bells, &second) == LOOM_RING_OS && errno == EEXIST);
    CHECK(loom_inbox_create("a/b", bells, &second) == LOOM_RING_USAGE);
    CHECK(loom_inbox_create("", bells, &second) == LOOM_RING_USAGE);
    CHECK(loom_lane_open(name, bells, LOOM_LANES, &lane) == LOOM_RING_USAGE);
    CHECK(loom_inbox_answer(mailbox, 3, "x", 1) == LOOM_RING_NOBODY);
    CHECK(loom_inbox_answer(mailbox, LOOM_LANES, "x", 1) == LOOM_RING_USAGE);
    OK(loom_lane_open(name, bells, 1, &lane));
    static unsigned char large[LOOM_RECORD_MAX + 1];
    CHECK(loom_lane_send(lane, large, LOOM_RECORD_MAX + 1) == LOOM_RING_LARGE);
    OK(loom_lane_send(lane, large, LOOM_RECORD_MAX));
    OK(loom_lane_send(lane, large, LOOM_RECORD_MAX));
    CHECK(loom_lane_send(lane, "", 0) == LOOM_RING_FULL);
    loom_lane_close(lane);
    char path[96];
    snprintf(path, sizeof path, "/dev/shm/%s.inbox", name);
    CHECK(chmod(path, 0644) == 0);
    CHECK(loom_lane_open(name, bells, 1, &lane) == LOOM_RING_DENIED);
    CHECK(chmod(path, 0600) == 0 && truncate(path, 100000) == 0);
    CHECK(loom_lane_open(name, bells, 1, &lane) == LOOM_RING_CORRUPT);
    CHECK(truncate(path, (off_t)LOOM_INBOX_SIZE) == 0);
    loom_inbox_close(mailbox);
    CHECK(!files_left(name) && !bells_left());
    for (int step = 0; step < LOOM_RING_STEP_COUNT; step++) CHECK(loom_ring_step_name(step));
    CHECK(!loom_ring_step_name(LOOM_RING_STEP_COUNT) && !loom_ring_step_name(-1));
}

/* Random sends, reads and answers of three lanes against counters: everything arrives once, in order, unchanged. */
static void test_order(uint64_t seed, long rounds) {
    loom_inbox *mailbox;
    loom_lane *lanes[3];
    uint64_t state = seed, sent[3] = {0}, got[3] = {0}, answered[3] = {0}, heard[3] = {0}, full = 0;
    static unsigned char buffer[LOOM_RECORD_MAX];
    OK(loom_inbox_create(name, bells, &mailbox));
    for (uint32_t i = 0; i < 3; i++) OK(loom_lane_open(name, bells, i * 100, &lanes[i]));
    for (long round = 0; round < rounds * 100; round++) {
        uint64_t choice = roll(&state) % 100;
        uint32_t i = (uint32_t)(roll(&state) % 3), limit = roll(&state) % 8 ? 400 : LOOM_RECORD_MAX, lane, size;
        uint32_t length = 8 + (uint32_t)(roll(&state) % (limit - 7));
        const void *data;
        if (choice < 40) {
            int code = loom_lane_send(lanes[i], buffer, compose(buffer, sent[i], length));
            CHECK(code == LOOM_RING_OK || code == LOOM_RING_FULL);
            sent[i] += !code;
            full += code == LOOM_RING_FULL;
        } else if (choice < 60) {
            int code = loom_inbox_answer(mailbox, i * 100, buffer, compose(buffer, answered[i], length));
            CHECK(code == LOOM_RING_OK || code == LOOM_RING_FULL);
            answered[i] += !code;
        } else if (choice < 85) {
            int code = loom_inbox_next(mailbox, &lane, &data, &size);
            if (code == LOOM_RING_EMPTY) {
                for (int k = 0; k < 3; k++) CHECK(got[k] == sent[k]);
                continue;
            }
            OK(code);
            expect(data, size, got[lane / 100]++);
            loom_inbox_take(mailbox);
            if (choice < 63) loom_inbox_pause(mailbox);
        } else {
            int code = loom_lane_next(lanes[i], &data, &size);
            CHECK((code == LOOM_RING_EMPTY) == (heard[i] == answered[i]));
            if (code) continue;
            expect(data, size, heard[i]++);
            loom_lane_take(lanes[i]);
            if (choice < 90) loom_lane_pause(lanes[i]);
        }
    }
    CHECK(full && sent[0] > 10);
    for (uint32_t i = 0; i < 3; i++) { /* what is left can be read back by its sender */
        uint64_t at = 0, n = got[i];
        const void *data;
        uint32_t size;
        while (!loom_lane_unread(lanes[i], &at, &data, &size)) expect(data, size, n++);
        CHECK(n == sent[i]);
        loom_lane_close(lanes[i]);
    }
    loom_inbox_close(mailbox);
    CHECK(!files_left(name) && !bells_left());
}

static void test_bells(void) {
    loom_inbox *mailbox;
    loom_lane *lane;
    uint32_t from, size;
    const void *data;
    static unsigned char block[8000];
    OK(loom_inbox_create(name, bells, &mailbox));
    OK(loom_lane_open(name, bells, 5, &lane));
    int bell = loom_inbox_bell(mailbox), own = loom_lane_bell(lane);
    OK(loom_lane_send(lane, "a", 1));
    CHECK(!is_rung(bell)); /* nobody sleeps */
    CHECK(!loom_inbox_rest(mailbox));
    OK(loom_inbox_next(mailbox, &from, &data, &size));
    CHECK(from == 5 && size == 1 && *(const char *)data == 'a');
    loom_inbox_take(mailbox);
    CHECK(loom_inbox_next(mailbox, &from, &data, &size) == LOOM_RING_EMPTY);
    CHECK(loom_inbox_rest(mailbox) && !is_rung(bell));
    OK(loom_lane_send(lane, "b", 1));
    CHECK(is_rung(bell));
    loom_inbox_wake(mailbox);
    CHECK(!is_rung(bell));
    OK(loom_lane_send(lane, "c", 1));
    CHECK(!is_rung(bell)); /* once is enough */
    while (!loom_inbox_next(mailbox, &from, &data, &size)) loom_inbox_take(mailbox);

    CHECK(loom_lane_rest(lane)); /* the sender sleeps, an answer wakes it */
    OK(loom_inbox_answer(mailbox, 5, "d", 1));
    CHECK(is_rung(own));
    loom_lane_wake(lane);
    CHECK(!loom_lane_rest(lane) && loom_lane_ready(lane));
    OK(loom_lane_next(lane, &data, &size));
    loom_lane_take(lane);

    int sent = 0; /* the sender waits for room */
    while (!loom_lane_send(lane, block, sizeof block)) sent++;
    CHECK(sent == 4 && !is_rung(own));
    OK(loom_inbox_next(mailbox, &from, &data, &size));
    loom_inbox_take(mailbox);
    CHECK(!is_rung(own));
    loom_inbox_pause(mailbox);
    CHECK(is_rung(own));
    loom_lane_wake(lane);
    OK(loom_lane_send(lane, block, sizeof block));
    while (!loom_inbox_next(mailbox, &from, &data, &size)) loom_inbox_take(mailbox);

    int answers = 0; /* the receiver waits for room */
    while (!loom_inbox_answer(mailbox, 5, block, sizeof block)) answers++;
    CHECK(answers == 4 && loom_inbox_rest(mailbox) && !is_rung(bell));
    OK(loom_lane_next(lane, &data, &size));
    loom_lane_take(lane);
    loom_lane_pause(lane);
    CHECK(is_rung(bell));
    loom_inbox_wake(mailbox);
    OK(loom_inbox_answer(mailbox, 5, block, sizeof block));
    loom_lane_close(lane);

    OK(loom_lane_open(name, bells, 5, &lane)); /* a successor: its own FIFO, and answers that are not for it */
    CHECK(loom_lane_ready(lane));
    while (!loom_lane_next(lane, &data, &size)) loom_lane_take(lane);
    CHECK(loom_lane_rest(lane));
    OK(loom_inbox_answer(mailbox, 5, "e", 1));
    CHECK(is_rung(loom_lane_bell(lane)));
    loom_lane_close(lane);
    loom_inbox_close(mailbox);
    CHECK(!files_left(name) && !bells_left());
}

/* --- Kill at every step ----------------------------------------------------------------------------------------- */

static int die_at, die_after;
static void die(int step) {
    if (step == die_at && die_after-- == 0) kill(getpid(), SIGKILL);
}

/* Progress that a dying process reports: what it had surely done. */
static struct progress {
    _Atomic uint64_t sent, took, answered;
} *progress;

static void doomed_sender(uint32_t index) {
    unsigned char buffer[512];
    loom_lane *lane;
    loom_ring_step_hook = die;
    if (loom_lane_open(name, bells, index, &lane)) _exit(9);
    for (uint64_t n = 0; n < 2000; n++) {
        int code;
        while ((code = loom_lane_send(lane, buffer, compose(buffer, n, 8 + n * 37 % 500))) == LOOM_RING_FULL) {
            struct pollfd wait = {loom_lane_bell(lane), POLLIN, 0};
            if (poll(&wait, 1, 10000) != 1) _exit(8);
            loom_lane_wake(lane);
        }
        if (code) _exit(7);
        atomic_store(&progress->sent, n + 1);
    }
    _exit(0);
}

static void kill_sender(int step, int after) {
    loom_inbox *mailbox;
    loom_lane *other;
    OK(loom_inbox_create(name, bells, &mailbox));
    OK(loom_lane_open(name, bells, 2, &other));
    atomic_store(&progress->sent, 0);
    pid_t child = fork();
    CHECK(child >= 0);
    if (!child) {
        die_at = step;
        die_after = after;
        doomed_sender(1);
    }
    uint64_t got = 0, others = 0, sent = 0;
    unsigned char buffer[64];
    int status = 0;
    for (bool gone = false;;) {
        uint32_t lane, size;
        const void *data;
        int code = loom_inbox_next(mailbox, &lane, &data, &size);
        if (code == LOOM_RING_OK) {
            expect(data, size, lane == 1 ? got++ : others++);
            loom_inbox_take(mailbox);
            continue;
        }
        CHECK(code == LOOM_RING_EMPTY);
        if (gone) break;
        if (!loom_inbox_rest(mailbox)) continue;
        while (!is_rung(loom_inbox_bell(mailbox)) && !gone) {
            gone = waitpid(child, &status, WNOHANG) == child;
            if (!gone) usleep(200);
        }
        if (gone) { /* asleep, whatever the dead one was at: the others' messages wake us as ever */
            OK(loom_lane_send(other, buffer, compose(buffer, sent++, 64)));
            CHECK(is_rung(loom_inbox_bell(mailbox)));
        }
        loom_inbox_wake(mailbox);
    }
    CHECK(others == 1);
    loom_lane *next;
    OK(loom_lane_open(name, bells, 1, &next));
    OK(loom_lane_send(next, buffer, compose(buffer, 7, 64)));
    uint64_t seen = atomic_load(&progress->sent);
    for (;;) { /* what was published without its bit being set comes with the successor's */
        uint32_t lane, size;
        const void *data;
        OK(loom_inbox_next(mailbox, &lane, &data, &size));
        uint64_t n;
        memcpy(&n, data, 8);
        bool last = n == 7 && size == 64; /* the dead one's had another size */
        if (!last) expect(data, size, got++);
        loom_inbox_take(mailbox);
        if (last) break;
    }
    CHECK(got == seen || got == seen + 1); /* killed after publishing, before it could say so */
    CHECK(WIFEXITED(status) ? WEXITSTATUS(status) == 0 && got == 2000 : WTERMSIG(status) == SIGKILL);
    loom_lane_close(next);
    loom_lane_close(other);
    loom_inbox_close(mailbox);
    CHECK(!files_left(name) && !bells_left());
}

static void doomed_receiver(loom_inbox *mailbox) {
    loom_ring_step_hook = die;
    for (;;) {
        uint32_t lane, size;
        const void *data;
        int code = loom_inbox_next(mailbox, &lane, &data, &size);
        if (code == LOOM_RING_OK) {
            unsigned char copy[512];
            memcpy(copy, data, size);
            loom_inbox_take(mailbox);
            atomic_fetch_add(&progress->took, 1);
            if (loom_inbox_answer(mailbox, lane, copy, size)) _exit(7);
            atomic_fetch_add(&progress->answered, 1);
        } else if (loom_inbox_rest(mailbox)) {
            struct pollfd wait = {loom_inbox_bell(mailbox), POLLIN, 0};
            if (poll(&wait, 1, 10000) != 1) _exit(0);
            loom_inbox_wake(mailbox);
        }
    }
}

static void kill_receiver(int step, int after) {
    loom_inbox *mailbox;
    loom_lane *lane;
    OK(loom_inbox_create(name, bells, &mailbox));
    OK(loom_lane_open(name, bells, 1, &lane));
    atomic_store(&progress->took, 0);
    atomic_store(&progress->answered, 0);
    pid_t child = fork();
    CHECK(child >= 0);
    if (!child) {
        die_at = step;
        die_after = after;
        doomed_receiver(mailbox);
    }
    unsigned char buffer[512];
    uint64_t sent = 0, heard = 0;
    const void *data;
    uint32_t size;
    int status = 0;
    bool gone = false;
    while (!gone) {
        if (sent < 1000 && sent - heard < 40)
            sent += loom_lane_send(lane, buffer, compose(buffer, sent, 8 + sent * 37 % 500)) == LOOM_RING_OK;
        while (!loom_lane_next(lane, &data, &size)) {
            expect(data, size, heard++);
            loom_lane_take(lane);
        }
        if (heard == 1000) kill(child, SIGKILL);
        gone = waitpid(child, &status, WNOHANG) == child;
    }
    CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
    while (!loom_lane_next(lane, &data, &size)) {
        expect(data, size, heard++);
        loom_lane_take(lane);
    }
    uint64_t at = 0, unread = 0, took = atomic_load(&progress->took), answered = atomic_load(&progress->answered);
    while (!loom_lane_unread(lane, &at, &data, &size)) unread++;
    at = 0;
    for (uint64_t n = sent - unread; !loom_lane_unread(lane, &at, &data, &size); n++) expect(data, size, n);
    CHECK(unread == sent - took || unread == sent - took - 1); /* killed after taking, before it could say so */
    CHECK(heard == answered || heard == answered + 1);
    loom_lane_close(lane);
    loom_inbox_close(mailbox);
    CHECK(!files_left(name) && !bells_left());
}

static void test_kills(void) {
    progress = mmap(NULL, sizeof *progress, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(progress != MAP_FAILED);
    for (int step = 0; step < LOOM_RING_STEP_COUNT; step++)
        for (int after = 0; after <= 40; after += after < 2 ? 1 : 19) {
            kill_sender(step, after);
            kill_receiver(step, after);
        }
    munmap(progress, sizeof *progress);
}

/* --- Damage ----------------------------------------------------------------------------------------------------- */

static volatile uint64_t sink; /* what is shown must be readable */

static void test_damage(uint64_t seed, long rounds) {
    uint64_t state = seed;
    char path[96];
    snprintf(path, sizeof path, "/dev/shm/%s.inbox", name);
    for (long round = 0; round < rounds; round++) {
        loom_inbox *mailbox;
        loom_lane *lane;
        static unsigned char buffer[LOOM_RECORD_MAX];
        OK(loom_inbox_create(name, bells, &mailbox));
        OK(loom_lane_open(name, bells, 1, &lane));
        int fd = open(path, O_RDWR | O_CLOEXEC);
        CHECK(fd >= 0);
        for (int i = 0; i < 60; i++) {
            uint64_t at = LOOM_LANES_OFFSET + LOOM_LANE_SIZE, value = roll(&state);
            switch (roll(&state) % 5) {
                case 0: at += roll(&state) % 2 * 64 + roll(&state) % 2 * 8; break;      /* heads and tails */
                case 1: at += LOOM_LANE_CONTROL + roll(&state) % 200 * 8; break;         /* records */
                case 2: at = 64 + roll(&state) % 24 * 8; break;                          /* sleeping, ready */
                case 3: at += 128 + roll(&state) % 10 * 8; break;
                default: at += LOOM_LANE_CONTROL + LOOM_RING_SIZE + roll(&state) % 200 * 8;
            }
            if (roll(&state) % 2) value %= 2 * LOOM_RING_SIZE;
            if (roll(&state) % 2) value &= ~UINT64_C(7);
            if (roll(&state) % 3 == 0) CHECK(pwrite(fd, &value, 8, (off_t)at) == 8);
            const void *data;
            uint32_t from, size, length = (uint32_t)(8 + roll(&state) % 600);
            uint64_t unread = 0, sum = 0;
            loom_lane_send(lane, buffer, compose(buffer, 1, length));
            loom_inbox_answer(mailbox, 1, buffer, length);
            for (int k = 0; k < 100; k++) {
                int code = loom_inbox_next(mailbox, &from, &data, &size);
                if (code == LOOM_RING_OK) {
                    for (uint32_t b = 0; b < size; b++) sum += ((const unsigned char *)data)[b];
                    loom_inbox_take(mailbox);
                } else if (code == LOOM_RING_EMPTY) {
                    break;
                }
            }
            for (int k = 0; k < 100 && !loom_lane_next(lane, &data, &size); k++) {
                for (uint32_t b = 0; b < size; b++) sum += ((const unsigned char *)data)[b];
                loom_lane_take(lane);
            }
            for (int k = 0; k < 100 && !loom_lane_unread(lane, &unread, &data, &size); k++) sum += size;
            loom_inbox_rest(mailbox);
            loom_inbox_wake(mailbox);
            loom_lane_rest(lane);
            loom_lane_wake(lane);
            sink = sum;
        }
        close(fd);
        loom_lane_close(lane);
        loom_inbox_close(mailbox);
        char bell[96]; /* a lane that looks like a successor's leaves it */
        snprintf(bell, sizeof bell, "%s.1", bells);
        unlink(bell);
    }
    CHECK(!files_left(name) && !bells_left());
}

/* --- Threads ---------------------------------------------------------------------------------------------------- */

#define SENDERS 4
static long messages;
static loom_inbox *box;

static void sleep_on(int bell) {
    struct pollfd wait = {bell, POLLIN, 0};
    CHECK(poll(&wait, 1, 60000) == 1); /* a minute of silence is a lost wake-up */
}

static void *receive(void *unused) {
    uint64_t got[SENDERS] = {0};
    long left = messages * SENDERS;
    unsigned char copy[LOOM_RECORD_MAX];
    (void)unused;
    while (left) {
        uint32_t lane, size;
        const void *data;
        int code = loom_inbox_next(box, &lane, &data, &size);
        if (code == LOOM_RING_EMPTY) {
            if (loom_inbox_rest(box)) {
                sleep_on(loom_inbox_bell(box));
                loom_inbox_wake(box);
            }
            continue;
        }
        OK(code);
        expect(data, size, got[lane]++);
        memcpy(copy, data, size);
        loom_inbox_take(box);
        while ((code = loom_inbox_answer(box, lane, copy, size)) == LOOM_RING_FULL)
            if (loom_inbox_rest(box)) {
                sleep_on(loom_inbox_bell(box));
                loom_inbox_wake(box);
            }
        OK(code);
        left--;
    }
    return NULL;
}

static void *send_and_hear(void *argument) {
    uint64_t state = (uint64_t)(uintptr_t)argument, sent = 0, heard = 0;
    uint32_t index = (uint32_t)(state - 1);
    unsigned char buffer[LOOM_RECORD_MAX];
    loom_lane *lane;
    OK(loom_lane_open(name, bells, index, &lane));
    while (heard < (uint64_t)messages) {
        const void *data;
        uint32_t size;
        int code = LOOM_RING_FULL;
        if (sent < (uint64_t)messages && sent - heard < 1 + index * 300) {
            code = loom_lane_send(lane, buffer, compose(buffer, sent, (uint32_t)(8 + roll(&state) % 300)));
            CHECK(code == LOOM_RING_OK || code == LOOM_RING_FULL);
            sent += !code;
        }
        bool any = false;
        while (!loom_lane_next(lane, &data, &size)) {
            expect(data, size, heard++);
            loom_lane_take(lane);
            any = true;
        }
        if (any) loom_lane_pause(lane);
        if (!any && code && loom_lane_rest(lane)) {
            sleep_on(loom_lane_bell(lane));
            loom_lane_wake(lane);
        }
    }
    loom_lane_close(lane);
    return NULL;
}

static void test_threads(void) {
    pthread_t threads[SENDERS + 1];
    OK(loom_inbox_create(name, bells, &box));
    CHECK(!pthread_create(&threads[SENDERS], NULL, receive, NULL));
    for (uintptr_t i = 0; i < SENDERS; i++) CHECK(!pthread_create(&threads[i], NULL, send_and_hear, (void *)(i + 1)));
    for (int i = 0; i <= SENDERS; i++) CHECK(!pthread_join(threads[i], NULL));
    loom_inbox_close(box);
    CHECK(!files_left(name) && !bells_left());
}

int main(int count, char **arguments) {
    snprintf(name, sizeof name, "loom-ring-%d", (int)getpid());
    snprintf(bells, sizeof bells, "/tmp/loom-ring-%d", (int)getpid());
    if (count > 1 && !strcmp(arguments[1], "threads")) {
        messages = count > 2 ? atol(arguments[2]) : 20000;
        test_threads();
        printf("ring, threads: %ld messages each of %d senders\n", messages, SENDERS);
        return 0;
    }
    uint64_t seed = count > 1 ? strtoull(arguments[1], NULL, 10) : 1;
    long rounds = count > 2 ? atol(arguments[2]) : 400;
    test_errors();
    test_bells();
    test_order(seed, rounds);
    test_kills();
    test_damage(seed, rounds);
    printf("ring: errors, bells, order, kills at %d steps, damage\n", LOOM_RING_STEP_COUNT);
    return 0;
}
