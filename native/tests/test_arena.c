/* test_arena.c -- the core by itself: leases, references, deaths, and what a repeated reap makes of a killed one. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "../src/arena_internal.h"
#include "check.h"

#define MIB (UINT64_C(1) << 20)

static char name[64];

static loom_arena *make(uint64_t budget) {
    loom_arena *node;
    CHECK_CODE(loom_arena_create(name, budget, NULL, &node), LOOM_OK);
    return node;
}

static loom_arena *join(void) {
    loom_arena *arena;
    CHECK_CODE(loom_arena_attach(name, &arena), LOOM_OK);
    return arena;
}

static void end(loom_arena *node) {
    CHECK_CODE(loom_arena_destroy(node), LOOM_OK);
    loom_arena_close(node);
    CHECK(files_left(name) == 0);
}

static loom_stats stats_of(loom_arena *arena) {
    loom_stats stats;
    CHECK_CODE(loom_arena_stats(arena, &stats), LOOM_OK);
    return stats;
}

static void fill(loom_view *view, unsigned char value) { memset(view->data, value, view->size); }

static int all(const loom_view *view, unsigned char value) {
    for (uint64_t i = 0; i < view->size; i++)
        if (view->data[i] != value) return 0;
    return 1;
}

/* --- Opening ------------------------------------------------------------------------------------------------------ */

static void test_names_are_checked(void) {
    loom_arena *arena;
    uint64_t count;
    char lengthy[LOOM_NAME_MAX + 2];
    memset(lengthy, 'a', sizeof lengthy - 1);
    lengthy[sizeof lengthy - 1] = '\0';
    const char *bad[] = {"", ".", "..", "a/b", "a.b", "a b", "\n", lengthy};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        CHECK_CODE(loom_arena_create(bad[i], MIB, NULL, &arena), LOOM_E_USAGE);
        CHECK_CODE(loom_arena_attach(bad[i], &arena), LOOM_E_USAGE);
        CHECK_CODE(loom_arena_destroy_files(bad[i], &count), LOOM_E_USAGE);
    }
}

static void test_open_errors(void) {
    loom_arena *node = make(MIB), *other;
    CHECK_CODE(loom_arena_create(name, MIB, NULL, &other), LOOM_E_EXISTS);
    CHECK_CODE(loom_arena_attach("loom-test-absent", &other), LOOM_E_NOT_FOUND);
    char path[LOOM_PATH_MAX];
    loom_os_path(path, sizeof path, name, 0);

    CHECK(chmod(path, 0644) == 0);
    CHECK_CODE(loom_arena_attach(name, &other), LOOM_E_DENIED);
    CHECK(chmod(path, 0600) == 0);

    uint32_t version = node->control->version;
    node->control->version = version + 1;
    CHECK_CODE(loom_arena_attach(name, &other), LOOM_E_VERSION);
    node->control->version = version;
    atomic_store(&node->control->magic, 0);
    CHECK_CODE(loom_arena_attach(name, &other), LOOM_E_CORRUPT);
    atomic_store(&node->control->magic, LOOM_CONTROL_MAGIC);
    node->control->boot_id[0] ^= 1;
    CHECK_CODE(loom_arena_attach(name, &other), LOOM_E_NOT_FOUND);
    node->control->boot_id[0] ^= 1;
    end(node);

    const uint64_t sizes[] = {0, 1, 4095, 4096, LOOM_TOKENS_OFFSET, LOOM_CONTROL_SIZE - 1, LOOM_CONTROL_SIZE + 1};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        int fd = open(path, O_CREAT | O_RDWR | O_TRUNC, 0600);
        CHECK(fd >= 0 && ftruncate(fd, (off_t)sizes[i]) == 0);
        struct loom_control header = {.magic = LOOM_CONTROL_MAGIC, .version = LOOM_LAYOUT_VERSION};
        header.header_size = sizeof header;
        header.total_size = sizes[i];
        if (sizes[i] >= sizeof header) CHECK(pwrite(fd, &header, sizeof header, 0) == sizeof header);
        close(fd);
        CHECK_CODE(loom_arena_attach(name, &other), LOOM_E_CORRUPT);
    }
    CHECK(unlink(path) == 0 && symlink("/etc/hostname", path) == 0);
    CHECK_CODE(loom_arena_attach(name, &other), LOOM_E_CORRUPT);
    CHECK(unlink(path) == 0);
}

static void test_participant_slots(void) {
    loom_arena *node = make(MIB), *arenas[LOOM_PARTICIPANTS], *extra;
    for (uint32_t i = 1; i < LOOM_PARTICIPANTS; i++) {
        arenas[i] = join();
        CHECK(loom_arena_participant(arenas[i]) == i);
    }
    CHECK_CODE(loom_arena_attach(name, &extra), LOOM_E_SLOTS);
    loom_arena_close(arenas[700]);
    arenas[700] = join();
    CHECK(loom_arena_participant(arenas[700]) == 700);
    CHECK(stats_of(node).participants == LOOM_PARTICIPANTS);
    /* Holders in the first and the last word of the bitmap. */
    loom_view view, taken;
    loom_reference reference;
    CHECK_CODE(loom_arena_lease(arenas[1023], 100, &view), LOOM_OK);
    fill(&view, 9);
    CHECK_CODE(loom_arena_send(arenas[1023], view.data, 100, 1, &reference), LOOM_OK);
    CHECK_CODE(loom_arena_accept(arenas[2], &reference, &taken), LOOM_E_STALE);
    CHECK_CODE(loom_arena_accept(arenas[1], &reference, &taken), LOOM_OK);
    loom_arena_release(&view);
    CHECK(all(&taken, 9));
    loom_arena_collect(arenas[1023], NULL);
    CHECK(stats_of(node).blocks == 1);
    loom_arena_release(&taken);
    CHECK(stats_of(node).blocks == 0);
    for (uint32_t i = 1; i < LOOM_PARTICIPANTS; i++) loom_arena_close(arenas[i]);
    CHECK(stats_of(node).participants == 1);
    end(node);
}

/* --- Leases ------------------------------------------------------------------------------------------------------- */

static void test_space_coalesces(void) {
    struct space space;
    CHECK_CODE(loom_space_open(&space, 64, 64 * 64), LOOM_OK);
    uint64_t at[64], state = 7;
    for (int i = 0; i < 64; i++) CHECK(loom_space_take(&space, 64, &at[i]) && at[i] == (uint64_t)i * 64);
    uint64_t none;
    CHECK(!loom_space_take(&space, 64, &none));
    for (int i = 63; i > 0; i--) { /* shuffle */
        int j = (int)(roll(&state) % (uint64_t)(i + 1));
        uint64_t swap = at[i];
        at[i] = at[j];
        at[j] = swap;
    }
    for (int i = 0; i < 64; i++) loom_space_give(&space, at[i], 64);
    CHECK(space.count == 1 && space.items[0].offset == 0 && space.items[0].size == 64 * 64);
    loom_space_close(&space);
}

static void test_lease_reuses_warm_space(void) {
    loom_arena *node = make(64 * MIB);
    loom_view first, second;
    CHECK_CODE(loom_arena_lease(node, 1000, &first), LOOM_OK);
    CHECK((uintptr_t)first.data % LOOM_ALIGNMENT == 0 && !first.readonly && first.size == 1000);
    unsigned char *where = first.data;
    uint64_t generation = first.generation;
    CHECK_CODE(loom_arena_release(&first), LOOM_OK);
    CHECK_CODE(loom_arena_release(&first), LOOM_E_CLOSED);
    CHECK_CODE(loom_arena_lease_warm(node, 1000, &second), LOOM_OK);
    CHECK(second.data == where && second.generation > generation);
    loom_arena_release(&second);
    CHECK_CODE(loom_arena_lease(node, 0, &second), LOOM_OK);
    CHECK(second.size == 0);
    loom_arena_release(&second);
    CHECK(stats_of(node).in_use_bytes == 0 && stats_of(node).segments == 1);
    end(node);
}

static void test_budget_and_growth(void) {
    loom_arena *node = make(16 * MIB), *other = join();
    loom_view views[64], extra;
    uint32_t count = 0;
    while (count < 64 && loom_arena_lease(node, MIB, &views[count]) == LOOM_OK) count++;
    CHECK(count == 16);
    CHECK(stats_of(node).reserved_bytes == 16 * MIB);
    CHECK_CODE(loom_arena_lease(other, 1, &extra), LOOM_E_FULL);
    CHECK_CODE(loom_arena_lease(node, 17 * MIB, &extra), LOOM_E_FULL);
    CHECK_CODE(loom_arena_lease(node, UINT64_MAX, &extra), LOOM_E_FULL);
    for (uint32_t i = 0; i < count; i++) loom_arena_release(&views[i]);
    /* Somebody was refused a moment ago: each segment was given back as it fell free. */
    CHECK(stats_of(node).reserved_bytes == 0);
    CHECK_CODE(loom_arena_lease(other, 16 * MIB, &extra), LOOM_OK);
    CHECK(files_left(name) == 2);
    loom_arena_release(&extra);
    CHECK(stats_of(node).reserved_bytes == 0 && files_left(name) == 1);
    loom_arena_close(other);
    end(node);
}

static void test_own_small_segments_make_room(void) {
    loom_arena *node = make(8 * MIB);
    loom_view view;
    CHECK_CODE(loom_arena_lease(node, 100, &view), LOOM_OK);
    loom_arena_release(&view);
    CHECK(stats_of(node).reserved_bytes == 4 * MIB); /* kept warm */
    CHECK_CODE(loom_arena_lease(node, 8 * MIB, &view), LOOM_OK);
    CHECK(stats_of(node).reserved_bytes == 8 * MIB);
    loom_arena_release(&view);
    end(node);
}

static void test_many_blocks(void) {
    enum { COUNT = 3000 };
    loom_arena *node = make(64 * MIB);
    loom_view *views = calloc(COUNT, sizeof *views);
    uint64_t state = 3;
    for (int round = 0; round < 4; round++) {
        for (int i = 0; i < COUNT; i++) {
            if (views[i].arena) continue;
            CHECK_CODE(loom_arena_lease(node, roll(&state) % 9000, &views[i]), LOOM_OK);
            fill(&views[i], (unsigned char)i);
        }
        for (int i = 0; i < COUNT; i++) {
            CHECK(all(&views[i], (unsigned char)i));
            if (views[i].size) CHECK(loom_arena_holds(node, views[i].data + views[i].size - 1, 1));
            CHECK(!loom_arena_holds(node, views[i].data, views[i].size + 1));
        }
        for (int i = 0; i < COUNT; i++)
            if (round == 3 || roll(&state) % 2) CHECK_CODE(loom_arena_release(&views[i]), LOOM_OK);
    }
    CHECK(stats_of(node).in_use_bytes == 0);
    uint64_t given;
    loom_arena_trim(node, &given);
    CHECK(stats_of(node).reserved_bytes == 0);
    free(views);
    end(node);
}

/* --- References --------------------------------------------------------------------------------------------------- */

static void test_send_accept_release(void) {
    loom_arena *node = make(64 * MIB), *sender = join(), *receiver = join();
    loom_view lease, whole, part;
    loom_reference reference;
    CHECK_CODE(loom_arena_lease(sender, 100000, &lease), LOOM_OK);
    fill(&lease, 5);
    lease.data[70000] = 6;
    CHECK_CODE(loom_arena_send(sender, lease.data, 100000, LOOM_ANY, &reference), LOOM_OK);
    CHECK_CODE(loom_arena_accept(receiver, &reference, &whole), LOOM_OK);
    CHECK(whole.readonly && whole.size == 100000 && whole.data != lease.data && whole.data[70000] == 6);
    CHECK_CODE(loom_arena_accept(receiver, &reference, &part), LOOM_E_STALE);
    CHECK_CODE(loom_arena_recall(sender, &reference), LOOM_E_STALE);
    /* The receiver sends a part on, to the owner. */
    CHECK_CODE(loom_arena_send(receiver, whole.data + 70000, 1, sender->me, &reference), LOOM_OK);
    loom_arena_release(&whole);
    loom_arena_release(&lease);
    CHECK_CODE(loom_arena_accept(sender, &reference, &part), LOOM_OK);
    CHECK(part.size == 1 && part.data[0] == 6 && part.readonly);
    loom_arena_collect(receiver, NULL);
    CHECK(stats_of(node).blocks == 1);
    loom_arena_release(&part);
    CHECK(stats_of(node).blocks == 0 && stats_of(node).in_flight == 0);
    loom_arena_close(sender);
    loom_arena_close(receiver);
    CHECK(stats_of(node).segments == 0);
    end(node);
}

static void test_reference_outlives_the_senders_view(void) {
    loom_arena *node = make(64 * MIB), *sender = join(), *receiver = join();
    loom_view lease, taken;
    loom_reference reference;
    CHECK_CODE(loom_arena_lease(sender, 4096, &lease), LOOM_OK);
    fill(&lease, 1);
    CHECK_CODE(loom_arena_hand_over(&lease, receiver->me, &reference), LOOM_OK);
    CHECK(!lease.arena);
    for (int i = 0; i < 100; i++) { /* the owner keeps leasing and never gets that block */
        CHECK_CODE(loom_arena_lease(sender, 4096, &lease), LOOM_OK);
        fill(&lease, 2);
        loom_arena_release(&lease);
    }
    CHECK_CODE(loom_arena_accept(receiver, &reference, &taken), LOOM_OK);
    CHECK(all(&taken, 1));
    loom_arena_release(&taken);
    loom_arena_close(receiver);
    loom_arena_close(sender);
    end(node);
}

static void test_recall_and_absent_receiver(void) {
    loom_arena *node = make(64 * MIB), *sender = join(), *receiver = join();
    loom_view lease, taken;
    loom_reference reference;
    CHECK_CODE(loom_arena_lease(sender, 10, &lease), LOOM_OK);
    CHECK_CODE(loom_arena_send(sender, lease.data, 10, 99, &reference), LOOM_E_ABSENT);
    CHECK_CODE(loom_arena_send(sender, lease.data, 10, LOOM_PARTICIPANTS, &reference), LOOM_E_USAGE);
    CHECK_CODE(loom_arena_send(sender, lease.data, 11, LOOM_ANY, &reference), LOOM_E_FOREIGN);
    CHECK_CODE(loom_arena_send(sender, &lease, 1, LOOM_ANY, &reference), LOOM_E_FOREIGN);
    CHECK_CODE(loom_arena_send(sender, lease.data, 10, receiver->me, &reference), LOOM_OK);
    CHECK_CODE(loom_arena_recall(receiver, &reference), LOOM_E_STALE);
    CHECK_CODE(loom_arena_recall(sender, &reference), LOOM_OK);
    CHECK_CODE(loom_arena_recall(sender, &reference), LOOM_E_STALE);
    CHECK_CODE(loom_arena_accept(receiver, &reference, &taken), LOOM_E_STALE);
    loom_arena_release(&lease);
    CHECK(stats_of(node).blocks == 0);
    loom_arena_close(sender);
    loom_arena_close(receiver);
    end(node);
}

static void test_tokens_run_out_and_come_back(void) {
    loom_arena *node = make(64 * MIB), *sender = join(), *receiver = join();
    loom_view lease, taken;
    static loom_reference references[LOOM_TOKENS];
    CHECK_CODE(loom_arena_lease(sender, 10, &lease), LOOM_OK);
    for (uint32_t i = 0; i < LOOM_TOKENS; i++)
        CHECK_CODE(loom_arena_send(sender, lease.data, 10, LOOM_ANY, &references[i]), LOOM_OK);
    loom_reference extra;
    CHECK_CODE(loom_arena_send(sender, lease.data, 10, LOOM_ANY, &extra), LOOM_E_TOKENS);
    CHECK(stats_of(node).in_flight == LOOM_TOKENS);
    CHECK_CODE(loom_arena_accept(receiver, &references[1234], &taken), LOOM_OK);
    CHECK_CODE(loom_arena_send(sender, lease.data, 10, LOOM_ANY, &extra), LOOM_OK);
    CHECK(extra.token == references[1234].token && extra.token_generation > references[1234].token_generation);
    loom_view again;
    CHECK_CODE(loom_arena_accept(receiver, &references[1234], &again), LOOM_E_STALE);
    loom_arena_release(&taken);
    references[1234] = extra;
    for (uint32_t i = 0; i < LOOM_TOKENS; i++) CHECK_CODE(loom_arena_recall(sender, &references[i]), LOOM_OK);
    loom_arena_release(&lease);
    CHECK(stats_of(node).blocks == 0 && stats_of(node).in_flight == 0);
    loom_arena_close(sender);
    loom_arena_close(receiver);
    end(node);
}

static void test_memory_comes_back_though_readers_stay_mapped(void) {
    loom_arena *node = make(64 * MIB), *sender = join(), *receiver = join();
    loom_view lease, taken;
    loom_reference reference;
    CHECK_CODE(loom_arena_lease(sender, 16 * MIB, &lease), LOOM_OK);
    fill(&lease, 1);
    CHECK_CODE(loom_arena_send(sender, lease.data, lease.size, LOOM_ANY, &reference), LOOM_OK);
    CHECK_CODE(loom_arena_accept(receiver, &reference, &taken), LOOM_OK);
    struct map *map = taken.map;
    loom_arena_release(&taken);
    loom_arena_release(&lease);
    uint64_t given;
    CHECK_CODE(loom_arena_trim(sender, &given), LOOM_OK);
    CHECK(given == 16 * MIB && receiver->maps[reference.segment] == map);
    unsigned char *pages = calloc(1, map->data_size / LOOM_PAGE);
    CHECK(mincore(map->data, map->data_size, pages) == 0);
    for (uint64_t i = 0; i < map->data_size / LOOM_PAGE; i++) CHECK(!(pages[i] & 1)); /* punched out */
    free(pages);
    CHECK_CODE(loom_arena_collect(receiver, NULL), LOOM_OK);
    CHECK(receiver->maps[reference.segment] == NULL);
    loom_arena_close(sender);
    loom_arena_close(receiver);
    end(node);
}

static struct {
    loom_arena *from, *to;
    loom_view held, taken;
} move;

/* Half the bitmap is read and found empty: now the one hold moves from the other half into this one. */
static void move_hold(int step) {
    if (step != LOOM_STEP_SCAN_HALFWAY || !move.held.arena) return;
    loom_reference reference;
    CHECK_CODE(loom_arena_send(move.from, move.held.data, move.held.size, move.to->me, &reference), LOOM_OK);
    CHECK_CODE(loom_arena_accept(move.to, &reference, &move.taken), LOOM_OK);
    CHECK_CODE(loom_arena_release(&move.held), LOOM_OK);
    CHECK_CODE(loom_arena_collect(move.from, NULL), LOOM_OK);
}

static void test_a_hold_that_moves_behind_the_scan_is_seen(void) {
    loom_arena *node = make(64 * MIB), *arenas[700];
    for (uint32_t i = 1; i < 700; i++) arenas[i] = join();
    loom_view lease, next;
    loom_reference reference;
    CHECK_CODE(loom_arena_lease(arenas[2], 1000, &lease), LOOM_OK);
    fill(&lease, 1);
    CHECK_CODE(loom_arena_send(arenas[2], lease.data, 1000, 699, &reference), LOOM_OK);
    CHECK_CODE(loom_arena_accept(arenas[699], &reference, &move.held), LOOM_OK);
    move.from = arenas[699];
    move.to = arenas[1];
    CHECK_CODE(loom_arena_collect(arenas[2], NULL), LOOM_OK);
    loom_arena_step_hook = move_hold;
    CHECK_CODE(loom_arena_release(&lease), LOOM_OK); /* scans */
    loom_arena_step_hook = NULL;
    CHECK(!move.held.arena && move.taken.arena);
    CHECK_CODE(loom_arena_lease(arenas[2], 1000, &next), LOOM_OK);
    fill(&next, 2);
    CHECK(all(&move.taken, 1));
    loom_arena_release(&next);
    loom_arena_release(&move.taken);
    for (uint32_t i = 1; i < 700; i++) loom_arena_close(arenas[i]);
    end(node);
}

static struct {
    loom_arena *sender;
    loom_reference reference;
    int step;
} take_back;

static void recall_now(int step) {
    if (step == take_back.step) CHECK_CODE(loom_arena_recall(take_back.sender, &take_back.reference), LOOM_OK);
}

/* The sender takes the reference back while the receiver is half through accepting it. */
static void test_a_recall_inside_an_accept(void) {
    static const int steps[] = {LOOM_STEP_ACCEPT_CHECKED, LOOM_STEP_ACCEPT_MAPPED, LOOM_STEP_ACCEPT_HELD,
                                LOOM_STEP_ACCEPT_COUNTED};
    for (size_t i = 0; i < sizeof steps / sizeof *steps; i++) {
        loom_arena *node = make(64 * MIB), *sender = join(), *receiver = join();
        loom_view lease, taken;
        CHECK_CODE(loom_arena_lease(sender, 1000, &lease), LOOM_OK);
        CHECK_CODE(loom_arena_send(sender, lease.data, 1000, LOOM_ANY, &take_back.reference), LOOM_OK);
        take_back.sender = sender;
        take_back.step = steps[i];
        loom_arena_step_hook = recall_now;
        CHECK_CODE(loom_arena_accept(receiver, &take_back.reference, &taken), LOOM_E_STALE);
        loom_arena_step_hook = NULL;
        CHECK(!taken.arena);
        loom_arena_release(&lease);
        loom_arena_collect(sender, NULL);
        CHECK(stats_of(node).blocks == 0);
        loom_arena_close(receiver);
        loom_arena_close(sender);
        CHECK(stats_of(node).segments == 0);
        end(node);
    }
}

/* --- Ends --------------------------------------------------------------------------------------------------------- */

static void test_close_waits_for_views(void) {
    loom_arena *node = make(64 * MIB), *sender = join(), *receiver = join();
    loom_view lease, taken;
    loom_reference reference;
    CHECK_CODE(loom_arena_lease(sender, 1000, &lease), LOOM_OK);
    fill(&lease, 3);
    CHECK_CODE(loom_arena_send(sender, lease.data, 1000, LOOM_ANY, &reference), LOOM_OK);
    CHECK_CODE(loom_arena_accept(receiver, &reference, &taken), LOOM_OK);
    loom_arena_close(sender);
    loom_arena_close(receiver);
    CHECK(all(&lease, 3) && all(&taken, 3) && stats_of(node).participants == 3);
    loom_arena_release(&lease); /* the sender leaves; its segment is orphaned, the reader reads on */
    CHECK(stats_of(node).participants == 2 && stats_of(node).orphaned == 1 && all(&taken, 3));
    loom_arena_sweep(node);
    CHECK(stats_of(node).segments == 1);
    loom_arena_release(&taken);
    loom_arena_sweep(node);
    CHECK(stats_of(node).participants == 1 && stats_of(node).segments == 0);
    end(node);
}

static void test_close_with_references_in_flight(void) {
    loom_arena *node = make(64 * MIB), *sender = join(), *receiver = join();
    loom_view lease, taken;
    loom_reference reference;
    CHECK_CODE(loom_arena_lease(sender, 1000, &lease), LOOM_OK);
    fill(&lease, 3);
    CHECK_CODE(loom_arena_hand_over(&lease, LOOM_ANY, &reference), LOOM_OK);
    loom_arena_close(sender);
    loom_arena_sweep(node);
    CHECK(stats_of(node).participants == 3 && stats_of(node).in_flight == 1);
    CHECK_CODE(loom_arena_accept(receiver, &reference, &taken), LOOM_OK);
    loom_arena_sweep(node);
    CHECK(stats_of(node).participants == 2 && all(&taken, 3));
    loom_arena_release(&taken);
    loom_arena_sweep(node);
    CHECK(stats_of(node).segments == 0);
    loom_arena_close(receiver);
    end(node);
}

static void test_reap_of_a_sender_with_grace(void) {
    loom_arena *node = make(64 * MIB), *sender = join(), *receiver = join();
    uint32_t dead = sender->me;
    loom_view lease, taken, late;
    loom_reference first, second;
    uint64_t in_flight;
    CHECK_CODE(loom_arena_lease(sender, 1000, &lease), LOOM_OK);
    fill(&lease, 3);
    CHECK_CODE(loom_arena_send(sender, lease.data, 1000, LOOM_ANY, &first), LOOM_OK);
    CHECK_CODE(loom_arena_send(sender, lease.data, 1000, LOOM_ANY, &second), LOOM_OK);
    CHECK_CODE(loom_arena_reap(node, dead, 1, &in_flight), LOOM_E_ALIVE);
    CHECK_CODE(loom_arena_reap(receiver, dead, 1, &in_flight), LOOM_E_USAGE);
    CHECK_CODE(loom_arena_reap(node, LOOM_NODE, 1, &in_flight), LOOM_E_USAGE);
    CHECK_CODE(loom_arena_reap(node, LOOM_PARTICIPANTS, 1, &in_flight), LOOM_E_USAGE);
    loom_arena_abandon(sender);
    CHECK_CODE(loom_arena_reap(node, dead, 0, &in_flight), LOOM_OK);
    CHECK(in_flight == 2);
    CHECK_CODE(loom_arena_accept(receiver, &first, &taken), LOOM_OK);
    CHECK_CODE(loom_arena_reap(node, dead, 1, &in_flight), LOOM_OK);
    CHECK(in_flight == 0);
    CHECK_CODE(loom_arena_accept(receiver, &second, &late), LOOM_E_STALE);
    CHECK(all(&taken, 3) && stats_of(node).blocks == 1);
    loom_arena_release(&taken);
    CHECK(stats_of(node).blocks == 0 && stats_of(node).segments == 1);
    loom_arena_sweep(node);
    CHECK(stats_of(node).segments == 0 && stats_of(node).participants == 2);
    CHECK_CODE(loom_arena_reap(node, dead, 1, &in_flight), LOOM_OK);
    loom_arena_release(&lease); /* the abandoned handle's last view: frees private memory only */
    loom_arena_close(receiver);
    end(node);
}

static void test_reap_of_a_receiver(void) {
    loom_arena *node = make(64 * MIB), *sender = join(), *receiver = join();
    uint32_t dead = receiver->me;
    loom_view lease, taken;
    loom_reference first, second;
    uint64_t in_flight;
    CHECK_CODE(loom_arena_lease(sender, 1000, &lease), LOOM_OK);
    CHECK_CODE(loom_arena_send(sender, lease.data, 1000, dead, &first), LOOM_OK);
    CHECK_CODE(loom_arena_send(sender, lease.data, 1000, dead, &second), LOOM_OK);
    CHECK_CODE(loom_arena_accept(receiver, &first, &taken), LOOM_OK);
    loom_arena_release(&lease);
    loom_arena_abandon(receiver);
    CHECK_CODE(loom_arena_reap(node, dead, 1, &in_flight), LOOM_OK);
    CHECK_CODE(loom_arena_collect(sender, NULL), LOOM_OK);
    CHECK(stats_of(node).blocks == 0 && stats_of(node).in_flight == 0 && stats_of(node).participants == 2);
    loom_arena *heir = join();
    CHECK(heir->me == dead);
    loom_view late;
    CHECK_CODE(loom_arena_accept(heir, &second, &late), LOOM_E_STALE);
    loom_arena_release(&taken);
    loom_arena_close(heir);
    loom_arena_close(sender);
    end(node);
}

static int step_to_die_at = -1;
static void die_here(int step) {
    if (step == step_to_die_at) kill(getpid(), SIGKILL);
}

/* The node is killed inside a reap and, as the same participant 0, does it again. The child plays the node. */
static void test_reap_can_be_killed_and_repeated(void) {
    for (int step = LOOM_STEP_GIVE_CLOSING; step < LOOM_STEP_COUNT; step++) {
        loom_arena *node = make(64 * MIB), *dead = join(), *reader = join();
        uint32_t index = dead->me;
        loom_view lease, kept, forward;
        loom_reference reference, lost;
        CHECK_CODE(loom_arena_lease(dead, 1000, &lease), LOOM_OK);
        fill(&lease, 8);
        CHECK_CODE(loom_arena_send(dead, lease.data, 1000, LOOM_ANY, &reference), LOOM_OK);
        CHECK_CODE(loom_arena_accept(reader, &reference, &kept), LOOM_OK);
        CHECK_CODE(loom_arena_send(dead, lease.data, 1000, LOOM_ANY, &lost), LOOM_OK);
        CHECK_CODE(loom_arena_lease(dead, 20 * MIB, &forward), LOOM_OK); /* a second segment, which only it holds */
        loom_arena_abandon(dead);
        pid_t child = fork();
        if (child == 0) {
            atomic_store(node->alive, 1);
            step_to_die_at = step;
            loom_arena_step_hook = die_here;
            uint64_t in_flight;
            loom_arena_reap(node, index, 1, &in_flight);
            _exit(0);
        }
        int status;
        CHECK(waitpid(child, &status, 0) == child && (WIFSIGNALED(status) || WEXITSTATUS(status) == 0));
        uint64_t in_flight;
        CHECK_CODE(loom_arena_reap(node, index, 1, &in_flight), LOOM_OK);
        CHECK_CODE(loom_arena_sweep(node), LOOM_OK);
        loom_stats stats = stats_of(node);
        CHECK(stats.participants == 2 && stats.segments == 1 && stats.blocks == 1 && stats.in_use_bytes == 1000);
        CHECK(all(&kept, 8) && files_left(name) == 2);
        loom_arena_release(&kept);
        CHECK_CODE(loom_arena_sweep(node), LOOM_OK);
        CHECK(stats_of(node).segments == 0 && files_left(name) == 1);
        loom_arena_release(&lease);
        loom_arena_release(&forward);
        loom_arena_close(reader);
        end(node);
    }
}

/* --- Spilling ----------------------------------------------------------------------------------------------------- */

static loom_arena *make_spilling(uint64_t budget, const char *folder) {
    loom_arena *node;
    const loom_policy policy = {LOOM_FULL_SPILL, 0, folder};
    CHECK_CODE(loom_arena_create(name, budget, &policy, &node), LOOM_OK);
    return node;
}

static void test_policies_are_checked(void) {
    loom_arena *node, *other;
    const char *folder = spill_folder();
    const loom_policy bad[] = {{3, 0, NULL}, {LOOM_FULL_SPILL, 0, NULL}, {LOOM_FULL_WAIT, 0, folder},
                               {LOOM_FULL_SPILL, 0, "relative"}};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        CHECK_CODE(loom_arena_create(name, MIB, &bad[i], &node), LOOM_E_USAGE);
    const loom_policy absent = {LOOM_FULL_SPILL, 0, "/tmp/loom-spill-absent"};
    CHECK_CODE(loom_arena_create(name, MIB, &absent, &node), LOOM_E_OS);
    CHECK(errno == ENOENT && files_left(name) == 0);
    node = make_spilling(MIB, folder);
    other = join();
    CHECK(loom_arena_full(other) == LOOM_FULL_SPILL && !strcmp(loom_arena_spill(other), loom_arena_spill(node)));
    const loom_policy same = {LOOM_FULL_SPILL, 0, folder};
    loom_arena *again;
    CHECK_CODE(loom_arena_create(name, MIB, &same, &again), LOOM_E_EXISTS); /* and the first one's folder stays */
    CHECK(files_in(folder, name) == 1);
    loom_arena_close(other);
    end(node);
    CHECK(rmdir(folder) == 0);
}

static void test_spilled_blocks(void) {
    const char *folder = spill_folder();
    loom_arena *node = make_spilling(4 * MIB, folder), *sender = join(), *receiver = join();
    const char *spill = loom_arena_spill(node);
    loom_view first, second, third, taken;
    loom_reference reference;
    CHECK_CODE(loom_arena_lease(sender, 4 * MIB, &first), LOOM_OK);
    CHECK_CODE(loom_arena_lease(sender, 100, &second), LOOM_OK);
    CHECK_CODE(loom_arena_lease(sender, 6 * MIB, &third), LOOM_OK);
    CHECK(files_in(spill, "") == 2);
    fill(&third, 7);
    CHECK_CODE(loom_arena_hand_over(&third, receiver->me, &reference), LOOM_OK);
    CHECK_CODE(loom_arena_accept(receiver, &reference, &taken), LOOM_OK);
    CHECK(taken.readonly && all(&taken, 7));
    loom_stats stats = stats_of(node);
    CHECK(stats.reserved_bytes == 4 * MIB && stats.spill_reserved_bytes == 10 * MIB);
    CHECK(stats.spilled_blocks == 2 && stats.spilled_bytes == 6 * MIB + 100 && stats.blocks_spilled == 2);
    loom_arena_release(&taken);
    loom_arena_collect(sender, NULL);
    CHECK(files_in(spill, "") == 1);
    loom_arena_release(&second);
    CHECK(files_in(spill, "") == 0);
    loom_arena_release(&first);
    loom_arena_close(receiver);
    loom_arena_close(sender);
    CHECK(stats_of(node).bytes_spilled == 6 * MIB + 100);
    end(node);
    CHECK(rmdir(folder) == 0);
}

static void test_a_dead_owners_spilled_segment(void) {
    const char *folder = spill_folder();
    loom_arena *node = make_spilling(1, folder), *owner = join(), *reader = join();
    loom_view lease, other, taken;
    loom_reference reference;
    CHECK_CODE(loom_arena_lease(owner, 1000, &lease), LOOM_OK);
    CHECK_CODE(loom_arena_lease(owner, 5 * MIB, &other), LOOM_OK);
    fill(&lease, 3);
    CHECK_CODE(loom_arena_send(owner, lease.data, lease.size, LOOM_ANY, &reference), LOOM_OK);
    CHECK_CODE(loom_arena_accept(reader, &reference, &taken), LOOM_OK);
    uint32_t index = owner->me;
    loom_arena_abandon(owner);
    uint64_t in_flight;
    CHECK_CODE(loom_arena_reap(node, index, 1, &in_flight), LOOM_OK);
    CHECK(all(&taken, 3) && files_in(loom_arena_spill(node), "") == 1);
    loom_stats stats = stats_of(node);
    CHECK(stats.orphaned == 1 && stats.spilled_blocks == 1);
    CHECK(stats.reclaimed_blocks == 1 && stats.reclaimed_bytes == 5 * MIB && stats.reclaimed_segments == 1);
    loom_arena_release(&taken);
    CHECK_CODE(loom_arena_sweep(node), LOOM_OK);
    CHECK(files_in(loom_arena_spill(node), "") == 0 && stats_of(node).reclaimed_segments == 2);
    loom_arena_release(&lease);
    loom_arena_release(&other);
    loom_arena_close(reader);
    end(node);
    CHECK(rmdir(folder) == 0);
}

static void test_dead_spill_folders_are_cleared(void) {
    const char *folder = spill_folder();
    loom_arena *node = make_spilling(1, folder);
    char control[LOOM_PATH_MAX];
    loom_os_path(control, sizeof control, name, 0);
    loom_view lease;
    uint64_t count;
    CHECK_CODE(loom_arena_lease(node, 1000, &lease), LOOM_OK);
    CHECK(unlink(control) == 0); /* as by a reboot */
    CHECK_CODE(loom_arena_clear_spill(folder, &count), LOOM_OK);
    CHECK(count == 0 && files_in(loom_arena_spill(node), "") == 1); /* locked */
    close(node->spill_fd);
    node->spill_fd = -1;
    CHECK_CODE(loom_arena_clear_spill(folder, &count), LOOM_OK);
    CHECK(count == 1 && files_in(folder, "") == 0);
    CHECK_CODE(loom_arena_clear_spill("/tmp/loom-spill-absent", &count), LOOM_E_OS);
    loom_arena_release(&lease);
    end(node);
    CHECK(rmdir(folder) == 0);
}

static void test_fork(void) {
    loom_arena *node = make(64 * MIB);
    loom_view lease;
    CHECK_CODE(loom_arena_lease(node, 1000, &lease), LOOM_OK);
    fill(&lease, 4);
    pid_t child = fork();
    if (child == 0) {
        loom_view view;
        loom_reference reference;
        uint64_t bytes;
        CHECK_CODE(loom_arena_lease(node, 10, &view), LOOM_E_FORKED);
        CHECK_CODE(loom_arena_send(node, lease.data, 10, LOOM_ANY, &reference), LOOM_E_FORKED);
        CHECK_CODE(loom_arena_trim(node, &bytes), LOOM_E_FORKED);
        CHECK_CODE(loom_arena_destroy(node), LOOM_E_FORKED);
        CHECK_CODE(loom_arena_release(&lease), LOOM_E_FORKED);
        loom_arena_close(node);
        loom_arena *own;
        CHECK_CODE(loom_arena_attach(name, &own), LOOM_OK);
        CHECK_CODE(loom_arena_lease(own, 10, &view), LOOM_OK);
        loom_arena_release(&view);
        loom_arena_close(own);
        _exit(0);
    }
    int status;
    CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0);
    CHECK(all(&lease, 4) && stats_of(node).blocks == 1 && stats_of(node).participants == 1);
    loom_arena_release(&lease);
    CHECK(stats_of(node).blocks == 0);
    end(node);
}

static void test_received_memory_is_read_only(void) {
    loom_arena *node = make(64 * MIB), *receiver = join();
    loom_view lease, taken;
    loom_reference reference;
    CHECK_CODE(loom_arena_lease(node, 10, &lease), LOOM_OK);
    CHECK_CODE(loom_arena_send(node, lease.data, 10, LOOM_ANY, &reference), LOOM_OK);
    CHECK_CODE(loom_arena_accept(receiver, &reference, &taken), LOOM_OK);
    struct map *map = taken.map;
    CHECK(mprotect(map->data, LOOM_PAGE, PROT_READ | PROT_WRITE) == -1 && errno == EACCES);
    pid_t child = fork();
    if (child == 0) {
        signal(SIGSEGV, SIG_DFL); /* the sanitizer has its own handler */
        *(volatile unsigned char *)taken.data = 1;
        _exit(0);
    }
    int status;
    CHECK(waitpid(child, &status, 0) == child && WIFSIGNALED(status) && WTERMSIG(status) == SIGSEGV);
    loom_arena_release(&lease);
    loom_arena_release(&taken);
    loom_arena_close(receiver);
    end(node);
}

static void test_liveness(void) {
    uint64_t mine, ticks;
    CHECK_CODE(loom_process_start_time((uint32_t)getpid(), &mine), LOOM_OK);
    CHECK(mine > 0);
    pid_t child = fork();
    if (child == 0) _exit(0);
    siginfo_t about;
    CHECK(waitid(P_PID, (id_t)child, &about, WEXITED | WNOWAIT) == 0);
    CHECK_CODE(loom_process_start_time((uint32_t)child, &ticks), LOOM_E_NOT_FOUND); /* a zombie */
    CHECK(waitpid(child, NULL, 0) == child);
    CHECK_CODE(loom_process_start_time((uint32_t)child, &ticks), LOOM_E_NOT_FOUND);
}

int main(void) {
    snprintf(name, sizeof name, "loom-native-%d", getpid());
    static const struct {
        const char *name;
        void (*run)(void);
    } tests[] = {
#define TEST(function) {#function, function}
        TEST(test_names_are_checked),
        TEST(test_open_errors),
        TEST(test_participant_slots),
        TEST(test_space_coalesces),
        TEST(test_lease_reuses_warm_space),
        TEST(test_budget_and_growth),
        TEST(test_own_small_segments_make_room),
        TEST(test_many_blocks),
        TEST(test_send_accept_release),
        TEST(test_reference_outlives_the_senders_view),
        TEST(test_recall_and_absent_receiver),
        TEST(test_tokens_run_out_and_come_back),
        TEST(test_memory_comes_back_though_readers_stay_mapped),
        TEST(test_a_hold_that_moves_behind_the_scan_is_seen),
        TEST(test_a_recall_inside_an_accept),
        TEST(test_close_waits_for_views),
        TEST(test_close_with_references_in_flight),
        TEST(test_reap_of_a_sender_with_grace),
        TEST(test_reap_of_a_receiver),
        TEST(test_reap_can_be_killed_and_repeated),
        TEST(test_policies_are_checked),
        TEST(test_spilled_blocks),
        TEST(test_a_dead_owners_spilled_segment),
        TEST(test_dead_spill_folders_are_cleared),
        TEST(test_fork),
        TEST(test_received_memory_is_read_only),
        TEST(test_liveness),
    };
    for (size_t i = 0; i < sizeof tests / sizeof *tests; i++) {
        tests[i].run();
        CHECK(files_left(name) == 0);
        printf("ok %s\n", tests[i].name);
        fflush(stdout);
    }
    return 0;
}
