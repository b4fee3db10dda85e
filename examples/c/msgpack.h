/* msgpack.h -- as much MessagePack as a client of a Loom node needs.
 *
 * The format: https://github.com/msgpack/msgpack/blob/master/spec.md
 * Reading does not allocate: items point into the message. Whatever the bytes are, nothing outside them is read.
 */
#ifndef MSGPACK_H
#define MSGPACK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum mp_kind {
    MP_BAD,
    MP_NIL,
    MP_BOOL,
    MP_UINT,
    MP_NEGATIVE,
    MP_FLOAT,
    MP_STRING,
    MP_BINARY,
    MP_ARRAY,
    MP_MAP,
    MP_EXT
};

struct mp_reader {
    const unsigned char *at, *end;
};

struct mp_item {
    enum mp_kind kind;
    uint64_t number;           /* MP_UINT: the value; MP_ARRAY: items that follow; MP_MAP: pairs that follow */
    const unsigned char *data; /* MP_STRING, MP_BINARY, MP_EXT: the bytes */
    size_t size;
    int type; /* MP_EXT: -128 .. 127 */
};

/* Read one item; of an array or a map only its head. MP_BAD at the end, and for anything malformed. */
struct mp_item mp_next(struct mp_reader *reader);

/* Pass over one whole value. False when it is malformed. */
bool mp_skip(struct mp_reader *reader);

/* In the map at `reader` (which stays where it is): the value of `key`. False when it is not there. */
bool mp_find(struct mp_reader reader, const char *key, struct mp_reader *value);

/* Whether an item is this very string. */
bool mp_is(struct mp_item item, const char *text);

struct mp_writer {
    unsigned char data[4096];
    size_t size;
    bool full; /* something did not fit: do not send it */
};

void mp_put_uint(struct mp_writer *writer, uint64_t value);
void mp_put_string(struct mp_writer *writer, const char *text);
void mp_put_array(struct mp_writer *writer, uint32_t items);
void mp_put_map(struct mp_writer *writer, uint32_t pairs);

#endif
