/* arena_space.c -- the free extents of one segment, in private memory: first fit from the front, neighbours coalesce.
 *
 * First fit keeps reusing the lowest addresses, whose pages are warm: a fresh tmpfs page costs six times a warm one.
 */
#include <stdlib.h>
#include <string.h>

#include "arena_internal.h"

int loom_space_open(struct space *space, uint32_t blocks, uint64_t size) {
    space->items = malloc(((size_t)blocks + 2) * sizeof *space->items); /* n blocks part the rest into n + 1 extents */
    if (!space->items) return LOOM_E_MEMORY;
    space->items[0] = (struct extent){0, size};
    space->count = 1;
    return LOOM_OK;
}

void loom_space_close(struct space *space) {
    free(space->items);
    *space = (struct space){0};
}

bool loom_space_take(struct space *space, uint64_t size, uint64_t *offset) {
    for (uint32_t i = 0; i < space->count; i++) {
        struct extent *extent = &space->items[i];
        if (extent->size < size) continue;
        *offset = extent->offset;
        extent->offset += size;
        extent->size -= size;
        if (!extent->size) {
            memmove(extent, extent + 1, (space->count - i - 1) * sizeof *extent);
            space->count--;
        }
        return true;
    }
    return false;
}

void loom_space_give(struct space *space, uint64_t offset, uint64_t size) {
    uint32_t low = 0, high = space->count;
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        if (space->items[middle].offset < offset)
            low = middle + 1;
        else
            high = middle;
    }
    struct extent *next = &space->items[low];
    bool joins_next = low < space->count && offset + size == next->offset;
    bool joins_previous = low > 0 && next[-1].offset + next[-1].size == offset;
    if (joins_previous && joins_next) {
        next[-1].size += size + next->size;
        memmove(next, next + 1, (space->count - low - 1) * sizeof *next);
        space->count--;
    } else if (joins_previous) {
        next[-1].size += size;
    } else if (joins_next) {
        next->offset = offset;
        next->size += size;
    } else {
        memmove(next + 1, next, (space->count - low) * sizeof *next);
        *next = (struct extent){offset, size};
        space->count++;
    }
}
