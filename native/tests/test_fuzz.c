/* test_fuzz.c -- references and shared tables full of nonsense: every call must return a code, whatever it reads.
 *
 * Plain and deterministic: the seed is the argument (default 1), the rounds the second (default 400).
 */
#define _GNU_SOURCE
#include <errno.h>

#include "../src/arena_internal.h"
#include "check.h"

#define MIB (UINT64_C(1) << 20)

static char name[64];

static void known(int code) { CHECK(code <= 0 && strcmp(loom_arena_text(code), "unknown code")); }

static uint64_t odd_number(uint64_t *state) {
    static const uint64_t edges[] = {
        0,    1,     15,    16,         63,  64,  255, 256, 1023, 1024, 2047, 2048, 4095, 4096, 8191,
        8192, 65535, 65536, UINT32_MAX, UINT64_C(1) << 32, UINT64_C(1) << 40, INT64_MAX, UINT64_MAX, UINT64_MAX - 1,
    };
    uint64_t pick = roll(state);
    return pick % 3 ? edges[roll(state) % (sizeof edges / sizeof *edges)] : pick % 4 ? roll(state) : roll(state) % 64;
}

/* Change one or more fields of a good reference: only the good one itself may be accepted, once. */
static void test_references(uint64_t seed) {
    loom_arena *node, *receiver;
    CHECK_CODE(loom_arena_create(name, 64 * MIB, NULL, &node), LOOM_OK);
    CHECK_CODE(loom_arena_attach(name, &receiver), LOOM_OK);
    loom_view lease, taken;
    CHECK_CODE(loom_arena_lease(node, 5000, &lease), LOOM_OK);
    memset(lease.data, 7, 5000);
    loom_reference good;
    CHECK_CODE(loom_arena_send(node, lease.data, 5000, LOOM_ANY, &good), LOOM_OK);
    uint64_t state = seed, accepted = 0;
    for (int i = 0; i < 200000; i++) {
        loom_reference bad = good;
        uint64_t *fields = (uint64_t *)&bad;
        for (uint64_t changes = 1 + roll(&state) % 3; changes; changes--) fields[roll(&state) % 8] = odd_number(&state);
        int code = loom_arena_accept(receiver, &bad, &taken);
        known(code);
        if (code == LOOM_OK) { /* a part of what was sent is in bounds too; the bytes are the right ones */
            CHECK(bad.offset + bad.size <= 5000 && bad.token == good.token);
            for (uint64_t at = 0; at < taken.size; at++) CHECK(taken.data[at] == 7);
            loom_arena_release(&taken);
            CHECK_CODE(loom_arena_send(node, lease.data, 5000, LOOM_ANY, &good), LOOM_OK);
            accepted++;
        }
        if (i % 64 == 0) known(loom_arena_recall(receiver, &bad));
    }
    printf("ok test_references (%llu partial ones accepted)\n", (unsigned long long)accepted);
    loom_arena_release(&lease);
    loom_arena_close(receiver);
    CHECK_CODE(loom_arena_destroy(node), LOOM_OK);
    loom_arena_close(node);
}

static void spoil(unsigned char *memory, size_t size, uint64_t *state) {
    uint64_t kind = roll(state) % 4, count = 1 + roll(state) % 64;
    for (uint64_t i = 0; i < count; i++) {
        size_t at = (size_t)(roll(state) % size);
        if (kind == 0)
            memory[at] ^= (unsigned char)(1u << roll(state) % 8);
        else if (kind == 1)
            memory[at] = (unsigned char)roll(state);
        else {
            uint64_t word = odd_number(state);
            memcpy(memory + at / 8 * 8, &word, sizeof word);
        }
    }
}

/* Every listing, into memory of exactly the size that the header promises is enough. */
static void list_all(loom_arena *arena) {
    loom_segment_info *segments = malloc(LOOM_SEGMENTS * sizeof *segments);
    loom_block_info *blocks = malloc(LOOM_BLOCKS_MAX * sizeof *blocks);
    uint32_t *senders = malloc(LOOM_PARTICIPANTS * sizeof *senders), count;
    CHECK(segments && blocks && senders);
    known(loom_arena_in_flight(arena, senders));
    known(loom_arena_segments(arena, segments, LOOM_SEGMENTS, &count));
    CHECK(count <= LOOM_SEGMENTS);
    for (uint32_t segment = 0; segment < 5; segment++) {
        uint32_t rows, few;
        known(loom_arena_blocks(arena, segment, blocks, LOOM_BLOCKS_MAX, &rows));
        known(loom_arena_blocks(arena, segment, blocks, 1, &few));
        CHECK(rows <= LOOM_BLOCKS_MAX && few <= 1);
    }
    CHECK_CODE(loom_arena_blocks(arena, LOOM_SEGMENTS, blocks, LOOM_BLOCKS_MAX, &count), LOOM_E_USAGE);
    free(segments);
    free(blocks);
    free(senders);
}

/* Overwrite the tables at random under three handles that go on working, then let the node clean up. */
static void test_tables(uint64_t seed, int rounds) {
    uint64_t state = seed;
    const char *folder = spill_folder();
    const loom_policy spill = {LOOM_FULL_SPILL, 0, folder};
    for (int round = 0; round < rounds; round++) {
        loom_arena *arenas[3];
        bool spills = round % 4 == 3;
        CHECK_CODE(loom_arena_create(name, spills ? 4 * MIB : 32 * MIB, spills ? &spill : NULL, &arenas[0]), LOOM_OK);
        for (int i = 1; i < 3; i++) CHECK_CODE(loom_arena_attach(name, &arenas[i]), LOOM_OK);
        loom_view views[16] = {{0}};
        loom_reference references[32];
        uint64_t sent = 0;
        for (int step = 0; step < 300; step++) {
            loom_arena *arena = arenas[roll(&state) % 3];
            loom_view *view = &views[roll(&state) % 16];
            uint64_t ignored;
            switch (roll(&state) % 10) {
            case 0:
            case 1:
                if (!view->arena) {
                    uint64_t limit = roll(&state) % 8 ? 9000 : 2 * MIB;
                    known(loom_arena_lease(arena, roll(&state) % limit, view));
                }
                break;
            case 2:
            case 3:
                if (view->arena) {
                    uint32_t receiver = roll(&state) % 2 ? LOOM_ANY : (uint32_t)(roll(&state) % 4);
                    int code = loom_arena_send(view->arena, view->data, view->size, receiver, &references[sent % 32]);
                    known(code);
                    sent += code == LOOM_OK;
                }
                break;
            case 4:
            case 5:
                if (sent && !view->arena) {
                    known(loom_arena_accept(arena, &references[roll(&state) % (sent < 32 ? sent : 32)], view));
                    for (uint64_t at = 0; view->arena && at < view->size; at += 512) /* must be mapped */
                        *(volatile unsigned char *)(view->data + at);
                }
                break;
            case 6:
                if (view->arena) known(loom_arena_release(view));
                break;
            case 7: {
                size_t size = LOOM_TOKENS_OFFSET + 3 * LOOM_PAGE; /* tokens: only what is reserved here */
                if (roll(&state) % 2) size = LOOM_PARTICIPANTS_OFFSET + 512;
                spoil((unsigned char *)arenas[0]->control, roll(&state) % 3 ? size : 4096, &state);
                break;
            }
            case 8: {
                struct map *map = arena->maps[roll(&state) % 4];
                if (map) spoil((unsigned char *)map->control, roll(&state) % 2 ? 1024 : map->control_size, &state);
                break;
            }
            default:
                switch (roll(&state) % 7) {
                case 0: known(loom_arena_collect(arena, NULL)); break;
                case 1: known(loom_arena_trim(arena, &ignored)); break;
                case 2: known(loom_arena_sweep(arenas[0])); break;
                case 3: known(loom_arena_reap(arenas[0], (uint32_t)(roll(&state) % 5), 1, &ignored)); break;
                case 4: {
                    loom_stats stats;
                    known(loom_arena_stats(arena, &stats));
                    break;
                }
                case 5: list_all(arena); break;
                default: {
                    loom_arena *extra;
                    known(loom_arena_attach(name, &extra));
                    if (extra) loom_arena_close(extra);
                }
                }
            }
        }
        for (int i = 0; i < 16; i++)
            if (views[i].arena && i % 2) known(loom_arena_release(&views[i]));
        for (int i = 2; i > 0; i--) loom_arena_close(arenas[i]);
        known(loom_arena_destroy(arenas[0]));
        loom_arena_close(arenas[0]);
        for (int i = 0; i < 16; i++)
            if (views[i].arena) known(loom_arena_release(&views[i]));
        known(loom_arena_destroy_files(name, NULL)); /* files of segments whose number was overwritten */
        CHECK(files_left(name) == 0);
        CHECK_CODE(loom_arena_clear_spill(folder, NULL), LOOM_OK);
    }
    CHECK(rmdir(folder) == 0);
    printf("ok test_tables (%d rounds)\n", rounds);
}

int main(int count, char **arguments) {
    uint64_t seed = count > 1 ? strtoull(arguments[1], NULL, 10) : 1;
    int rounds = count > 2 ? atoi(arguments[2]) : 400;
    snprintf(name, sizeof name, "loom-fuzz-%d", getpid());
    test_references(seed);
    test_tables(seed, rounds);
    return 0;
}
