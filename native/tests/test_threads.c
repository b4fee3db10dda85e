/* test_threads.c -- participants on threads of one process, exchanging references, leaving and dying, under
 * ThreadSanitizer. References pass through relaxed atomics on purpose: the only order between a writer of a block and
 * its readers is what the arena itself gives, so that a wrong memory order in it shows as a race on the bytes.
 */
#define _GNU_SOURCE
#include <pthread.h>

#include "../src/arena_internal.h"
#include "check.h"

#define THREADS 4
#define POSTS 32

static char name[64];
static long rounds;
static loom_arena *shared; /* one handle, used by two threads */

struct post { /* holds one reference; a torn one is merely stale */
    _Atomic uint64_t full;
    _Atomic uint64_t fields[8];
};
static struct post posts[POSTS];
static _Atomic uint64_t passed, stale;

static void put(uint64_t *state, const loom_reference *reference, loom_arena *sender) {
    struct post *post = &posts[roll(state) % POSTS];
    uint64_t expected = 0;
    if (!atomic_compare_exchange_strong_explicit(&post->full, &expected, 1, memory_order_relaxed,
                                                 memory_order_relaxed)) {
        int code = loom_arena_recall(sender, reference);
        CHECK(code == LOOM_OK || code == LOOM_E_STALE);
        return;
    }
    const uint64_t *fields = (const uint64_t *)reference;
    for (int i = 0; i < 8; i++) atomic_store_explicit(&post->fields[i], fields[i], memory_order_relaxed);
    atomic_store_explicit(&post->full, 2, memory_order_relaxed);
}

static int get(uint64_t *state, loom_reference *reference) {
    struct post *post = &posts[roll(state) % POSTS];
    uint64_t expected = 2;
    if (!atomic_compare_exchange_strong_explicit(&post->full, &expected, 1, memory_order_relaxed, memory_order_relaxed))
        return 0;
    uint64_t *fields = (uint64_t *)reference;
    for (int i = 0; i < 8; i++) fields[i] = atomic_load_explicit(&post->fields[i], memory_order_relaxed);
    atomic_store_explicit(&post->full, 0, memory_order_relaxed);
    return 1;
}

static void write_block(loom_view *view) {
    for (uint64_t i = 0; i + 8 <= view->size; i += 8) memcpy(view->data + i, &view->generation, 8);
}

static void read_block(const loom_view *view) {
    uint64_t word;
    for (uint64_t i = 0; i + 8 <= view->size; i += 8) {
        memcpy(&word, view->data + i, 8);
        CHECK(word == view->generation);
    }
}

static void *work(void *argument) {
    uint64_t state = (uint64_t)(uintptr_t)argument;
    loom_arena *arena = state <= 2 ? shared : NULL;
    for (long round = 0; round < rounds; round++) {
        if (!arena) CHECK_CODE(loom_arena_attach(name, &arena), LOOM_OK);
        loom_view view;
        loom_reference reference;
        uint64_t choice = roll(&state) % 100;
        if (choice < 45) {
            uint64_t size = choice < 44 ? 8 * (1 + roll(&state) % 64) : 1 << 20;
            if (loom_arena_lease(arena, size, &view) != LOOM_OK) continue;
            write_block(&view);
            int code = loom_arena_send(arena, view.data, view.size, LOOM_ANY, &reference);
            CHECK(code == LOOM_OK || code == LOOM_E_TOKENS);
            loom_arena_release(&view);
            if (code == LOOM_OK) put(&state, &reference, arena);
        } else if (choice < 95) {
            if (!get(&state, &reference)) continue;
            int code = loom_arena_accept(arena, &reference, &view);
            if (code == LOOM_E_STALE) {
                atomic_fetch_add(&stale, 1);
                continue;
            }
            CHECK_CODE(code, LOOM_OK);
            read_block(&view);
            if (choice < 65 && loom_arena_send(arena, view.data, view.size, LOOM_ANY, &reference) == LOOM_OK)
                put(&state, &reference, arena);
            read_block(&view);
            loom_arena_release(&view);
            atomic_fetch_add(&passed, 1);
        } else if (choice < 97) {
            uint64_t bytes;
            CHECK_CODE(choice == 95 ? loom_arena_collect(arena, NULL) : loom_arena_trim(arena, &bytes), LOOM_OK);
        } else if (arena != shared && roll(&state) % 8 == 0) {
            if (choice == 97)
                loom_arena_close(arena);
            else
                loom_arena_abandon(arena);
            arena = NULL;
        }
    }
    if (arena && arena != shared) loom_arena_close(arena);
    return NULL;
}

int main(int count, char **arguments) {
    rounds = count > 1 ? atol(arguments[1]) : 20000;
    snprintf(name, sizeof name, "loom-threads-%d", getpid());
    loom_arena *node;
    /* A segment each for three of them; what the others find no room for is spilled. */
    const char *folder = spill_folder();
    const loom_policy spill = {LOOM_FULL_SPILL, 0, folder};
    CHECK_CODE(loom_arena_create(name, 12 << 20, &spill, &node), LOOM_OK);
    CHECK_CODE(loom_arena_attach(name, &shared), LOOM_OK);
    pthread_t threads[THREADS];
    for (uintptr_t i = 0; i < THREADS; i++) CHECK(!pthread_create(&threads[i], NULL, work, (void *)(i + 1)));
    for (long round = 0; round < rounds / 200; round++) { /* the node's part: the dead are reaped while others go on */
        for (uint32_t i = 1; i < 32; i++) {
            uint64_t in_flight;
            int code = loom_arena_reap(node, i, round % 2 != 0, &in_flight);
            CHECK(code == LOOM_OK || code == LOOM_E_ALIVE);
        }
        CHECK_CODE(loom_arena_sweep(node), LOOM_OK);
        loom_stats stats;
        CHECK_CODE(loom_arena_stats(node, &stats), LOOM_OK);
        CHECK(stats.reserved_bytes <= stats.budget_bytes * 2); /* two racing creators both back out again */
    }
    for (int i = 0; i < THREADS; i++) CHECK(!pthread_join(threads[i], NULL));
    loom_arena_close(shared);
    for (uint32_t i = 1; i < LOOM_PARTICIPANTS; i++) {
        uint64_t in_flight;
        CHECK_CODE(loom_arena_reap(node, i, 1, &in_flight), LOOM_OK);
    }
    CHECK_CODE(loom_arena_sweep(node), LOOM_OK);
    loom_stats stats;
    CHECK_CODE(loom_arena_stats(node, &stats), LOOM_OK);
    printf("ok test_threads: %llu read, %llu stale, left: %llu blocks, %llu segments, %llu participants\n",
           (unsigned long long)passed, (unsigned long long)stale, (unsigned long long)stats.blocks,
           (unsigned long long)stats.segments, (unsigned long long)stats.participants);
    CHECK(stats.blocks_spilled > 0);
    CHECK(stats.blocks == 0 && stats.segments == 0 && stats.participants == 1 && stats.in_flight == 0);
    CHECK_CODE(loom_arena_destroy(node), LOOM_OK);
    loom_arena_close(node);
    CHECK(files_left(name) == 0 && rmdir(folder) == 0);
    return 0;
}
