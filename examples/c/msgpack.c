/* msgpack.c -- see msgpack.h. */
#include "msgpack.h"

#include <string.h>

/* --- Reading ---------------------------------------------------------------------------------------------------- */

/* A big-endian number of `size` bytes; past the end it is 0 and the reader is at its end. */
static uint64_t number(struct mp_reader *reader, size_t size) {
    if ((size_t)(reader->end - reader->at) < size) {
        reader->at = reader->end;
        return 0;
    }
    uint64_t value = 0;
    for (size_t i = 0; i < size; i++) value = value << 8 | *reader->at++;
    return value;
}

static struct mp_item bytes(struct mp_reader *reader, enum mp_kind kind, uint64_t size) {
    struct mp_item item = {.kind = kind};
    if (kind == MP_EXT) {
        unsigned type = (unsigned)number(reader, 1);
        item.type = type < 128 ? (int)type : (int)type - 256;
    }
    if (size > (uint64_t)(reader->end - reader->at)) return (struct mp_item){.kind = MP_BAD};
    item.data = reader->at;
    item.size = (size_t)size;
    reader->at += size;
    return item;
}

static struct mp_item fixed(struct mp_reader *reader, enum mp_kind kind, size_t size) {
    if ((size_t)(reader->end - reader->at) < size) return (struct mp_item){.kind = MP_BAD};
    struct mp_item item = {.kind = kind, .number = number(reader, size)};
    if (kind == MP_NEGATIVE && !(item.number >> (8 * size - 1))) item.kind = MP_UINT; /* signed, but not below 0 */
    return item;
}

struct mp_item mp_next(struct mp_reader *reader) {
    if (reader->at >= reader->end) return (struct mp_item){.kind = MP_BAD};
    unsigned head = *reader->at++;
    if (head <= 0x7f) return (struct mp_item){.kind = MP_UINT, .number = head};
    if (head <= 0x8f) return (struct mp_item){.kind = MP_MAP, .number = head & 0xf};
    if (head <= 0x9f) return (struct mp_item){.kind = MP_ARRAY, .number = head & 0xf};
    if (head <= 0xbf) return bytes(reader, MP_STRING, head & 0x1f);
    if (head >= 0xe0) return (struct mp_item){.kind = MP_NEGATIVE};
    switch (head) {
    case 0xc0: return (struct mp_item){.kind = MP_NIL};
    case 0xc2:
    case 0xc3: return (struct mp_item){.kind = MP_BOOL, .number = head & 1};
    case 0xc4:
    case 0xc5:
    case 0xc6: return bytes(reader, MP_BINARY, number(reader, (size_t)1 << (head - 0xc4)));
    case 0xc7:
    case 0xc8:
    case 0xc9: return bytes(reader, MP_EXT, number(reader, (size_t)1 << (head - 0xc7)));
    case 0xca: return fixed(reader, MP_FLOAT, 4);
    case 0xcb: return fixed(reader, MP_FLOAT, 8);
    case 0xcc:
    case 0xcd:
    case 0xce:
    case 0xcf: return fixed(reader, MP_UINT, (size_t)1 << (head - 0xcc));
    case 0xd0:
    case 0xd1:
    case 0xd2:
    case 0xd3: return fixed(reader, MP_NEGATIVE, (size_t)1 << (head - 0xd0));
    case 0xd4:
    case 0xd5:
    case 0xd6:
    case 0xd7:
    case 0xd8: return bytes(reader, MP_EXT, (uint64_t)1 << (head - 0xd4));
    case 0xd9:
    case 0xda:
    case 0xdb: return bytes(reader, MP_STRING, number(reader, (size_t)1 << (head - 0xd9)));
    case 0xdc:
    case 0xdd: return fixed(reader, MP_ARRAY, (size_t)2 << (head - 0xdc));
    case 0xde:
    case 0xdf: return fixed(reader, MP_MAP, (size_t)2 << (head - 0xde));
    default: return (struct mp_item){.kind = MP_BAD}; /* 0xc1 is never used */
    }
}

bool mp_skip(struct mp_reader *reader) {
    for (uint64_t left = 1; left; left--) { /* counting instead of recursing: no nesting is too deep */
        struct mp_item item = mp_next(reader);
        if (item.kind == MP_BAD) return false;
        if (item.kind == MP_ARRAY) left += item.number;
        if (item.kind == MP_MAP) left += 2 * item.number;
    }
    return true;
}

bool mp_find(struct mp_reader reader, const char *key, struct mp_reader *value) {
    struct mp_item map = mp_next(&reader);
    if (map.kind != MP_MAP) return false;
    for (uint64_t i = 0; i < map.number; i++) {
        struct mp_reader pair = reader;
        struct mp_item name = mp_next(&pair);
        if (mp_is(name, key)) {
            *value = pair;
            return true;
        }
        if (!mp_skip(&reader) || !mp_skip(&reader)) return false;
    }
    return false;
}

bool mp_is(struct mp_item item, const char *text) {
    return item.kind == MP_STRING && item.size == strlen(text) && !memcmp(item.data, text, item.size);
}

/* --- Writing ---------------------------------------------------------------------------------------------------- */

static void put(struct mp_writer *writer, unsigned head, uint64_t value, size_t size) {
    if (writer->full || sizeof writer->data - writer->size < size + 1) {
        writer->full = true;
        return;
    }
    writer->data[writer->size++] = (unsigned char)head;
    for (size_t i = size; i-- > 0;) writer->data[writer->size++] = (unsigned char)(value >> 8 * i);
}

void mp_put_uint(struct mp_writer *writer, uint64_t value) { put(writer, 0xcf, value, 8); }
void mp_put_array(struct mp_writer *writer, uint32_t items) { put(writer, 0xdd, items, 4); }
void mp_put_map(struct mp_writer *writer, uint32_t pairs) { put(writer, 0xdf, pairs, 4); }

void mp_put_string(struct mp_writer *writer, const char *text) {
    size_t size = strlen(text);
    if (size > sizeof writer->data) {
        writer->full = true;
        return;
    }
    put(writer, 0xdb, size, 4);
    if (writer->full || sizeof writer->data - writer->size < size) {
        writer->full = true;
        return;
    }
    memcpy(writer->data + writer->size, text, size);
    writer->size += size;
}
