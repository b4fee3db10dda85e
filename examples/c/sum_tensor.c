/* sum_tensor.c -- call an actor, map the tensor it answers with, sum it, let go of it.
 *
 *   sum_tensor NODE_ENDPOINT ACTOR METHOD [ARGUMENT...]
 *
 * An ARGUMENT of digits is sent as an integer, any other as a string. The method has to return an array of float64.
 * Prints its sum. Exit code 1 and a line on standard error when there is none.
 */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <zmq.h>

#include "arena_reader.h"
#include "msgpack.h"

#define TIMEOUT_MS 30000
#define MAX_FRAMES 64
#define MAX_BUFFERS 64
#define NDARRAY 1 /* MessagePack extension type of an array: msgpack [dtype, shape, buffer index] */

struct answer {
    zmq_msg_t frames[MAX_FRAMES]; /* the header, the body unless it is in there, buffers that do not go by reference */
    size_t count;
    size_t buffers_from;   /* index of the first frame that is a buffer */
    struct mp_reader body; /* a small body is the header's field `body`; a large one the last of the buffers */
    int body_in_buffers;
};

static int complain(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fputc('\n', stderr);
    return -1;
}

/* --- Asking ----------------------------------------------------------------------------------------------------- */

static struct mp_reader frame(const struct answer *answer, size_t index) {
    zmq_msg_t *message = (zmq_msg_t *)&answer->frames[index];
    const unsigned char *data = zmq_msg_data(message);
    return (struct mp_reader){data, data + zmq_msg_size(message)};
}

static void forget(struct answer *answer) {
    for (size_t i = 0; i < answer->count; i++) zmq_msg_close(&answer->frames[i]);
    answer->count = 0;
}

static int receive(void *socket, struct answer *answer) {
    do {
        if (answer->count == MAX_FRAMES) return complain("the answer has more than %d frames", MAX_FRAMES);
        zmq_msg_t *message = &answer->frames[answer->count];
        zmq_msg_init(message);
        answer->count++;
        if (zmq_msg_recv(message, socket, 0) < 0) return complain("no answer: %s", zmq_strerror(zmq_errno()));
    } while (zmq_msg_more(&answer->frames[answer->count - 1]));
    answer->buffers_from = 1;
    struct mp_reader bulk;
    if (mp_find(frame(answer, 0), "body", &answer->body)) return 0;
    answer->body_in_buffers = mp_find(frame(answer, 0), "bulk_body", &bulk); /* left out when it is false */
    if (answer->body_in_buffers) return 0;
    if (answer->count < 2) return complain("the answer has no body");
    answer->buffers_from = 2;
    answer->body = frame(answer, 1);
    return 0;
}

static struct mp_item text_of(struct mp_reader map, const char *key) {
    struct mp_reader value;
    struct mp_item none = {.kind = MP_STRING, .data = (const unsigned char *)"?", .size = 1};
    if (!mp_find(map, key, &value)) return none;
    struct mp_item item = mp_next(&value);
    return item.kind == MP_STRING ? item : none;
}

/* Whether the answer is a reply; says what it is instead when it is not. */
static int check(const struct answer *answer) {
    struct mp_item kind = text_of(frame(answer, 0), "kind");
    if (mp_is(kind, "reply")) return 0;
    if (!mp_is(kind, "error")) return complain("expected a reply, got a %.*s message", (int)kind.size, kind.data);
    struct mp_item code = text_of(answer->body, "code"), type = text_of(answer->body, "type");
    struct mp_item text = text_of(answer->body, "message");
    return complain("%.*s %.*s: %.*s", (int)code.size, code.data, (int)type.size, type.data, (int)text.size, text.data);
}

static void put_argument(struct mp_writer *writer, const char *text) {
    if (*text && strlen(text) < 20 && strspn(text, "0123456789") == strlen(text))
        mp_put_uint(writer, strtoull(text, NULL, 10));
    else
        mp_put_string(writer, text);
}

/* One call and its reply. `participant`: our row in the arena, for references to be made out to; -1 for none. */
static int ask(void *context, const char *endpoint, const char *method, char **arguments, int count, int participant,
               struct answer *answer) {
    static uint64_t id;
    struct mp_writer header = {.size = 0};
    mp_put_map(&header, participant < 0 ? 4 : 5);
    mp_put_string(&header, "id");
    mp_put_uint(&header, ++id);
    mp_put_string(&header, "kind");
    mp_put_string(&header, "call");
    mp_put_string(&header, "name");
    mp_put_string(&header, method);
    if (participant >= 0) {
        mp_put_string(&header, "participant");
        mp_put_uint(&header, (uint64_t)participant);
    }
    mp_put_string(&header, "body"); /* [[argument, ...]] */
    mp_put_array(&header, 1);
    mp_put_array(&header, (uint32_t)count);
    for (int i = 0; i < count; i++) put_argument(&header, arguments[i]);
    if (header.full) return complain("the call is too long");

    int failed = -1, timeout_ms = TIMEOUT_MS, linger_ms = 0;
    void *socket = zmq_socket(context, ZMQ_DEALER);
    if (!socket) return complain("no socket: %s", zmq_strerror(zmq_errno()));
    zmq_setsockopt(socket, ZMQ_LINGER, &linger_ms, sizeof linger_ms);
    zmq_setsockopt(socket, ZMQ_RCVTIMEO, &timeout_ms, sizeof timeout_ms);
    zmq_setsockopt(socket, ZMQ_SNDTIMEO, &timeout_ms, sizeof timeout_ms);
    if (zmq_connect(socket, endpoint) || zmq_send(socket, header.data, header.size, 0) < 0)
        complain("%s: %s", endpoint, zmq_strerror(zmq_errno()));
    else if (!receive(socket, answer))
        failed = check(answer);
    zmq_close(socket);
    if (failed) forget(answer);
    return failed;
}

/* Ask the node for a map and copy one string of it. */
static int ask_text(void *context, const char *node, const char *verb, char **arguments, int count, const char *key,
                    char *into, size_t size) {
    struct answer answer = {.count = 0};
    if (ask(context, node, verb, arguments, count, -1, &answer)) return -1;
    struct mp_item text = text_of(answer.body, key);
    int failed = text.size < size ? 0 : complain("%s: %s is too long", verb, key);
    if (!failed) {
        memcpy(into, text.data, text.size);
        into[text.size] = '\0';
    }
    forget(&answer);
    return failed;
}

/* --- Buffers: where the header says they ride ------------------------------------------------------------------- */

struct buffers {
    struct arena_view views[MAX_BUFFERS]; /* `hold` is NULL where the bytes are in a frame */
    size_t count;
};

static int take_buffers(struct arena *arena, struct answer *answer, struct buffers *buffers) {
    struct mp_reader at;
    size_t next_frame = answer->buffers_from;
    if (!mp_find(frame(answer, 0), "buffers", &at)) return 0; /* a field at its default is left out */
    struct mp_item all = mp_next(&at);
    if (all.kind != MP_ARRAY || all.number > MAX_BUFFERS)
        return complain("header: expected at most %d buffers", MAX_BUFFERS);
    for (uint64_t i = 0; i < all.number; i++) {
        struct arena_view *view = &buffers->views[i];
        struct mp_item place = mp_next(&at);
        if (place.kind == MP_NIL && next_frame < answer->count) {
            struct mp_reader bytes = frame(answer, next_frame++);
            *view = (struct arena_view){bytes.at, (uint64_t)(bytes.end - bytes.at), NULL};
        } else if (place.kind == MP_ARRAY && place.number == 8) {
            uint64_t reference[8];
            for (int field = 0; field < 8; field++) {
                struct mp_item number = mp_next(&at);
                if (number.kind != MP_UINT) return complain("header: a reference has a field that is no number");
                reference[field] = number.number;
            }
            int code = arena_accept(arena, reference, view);
            if (code) return complain("the reference cannot be accepted (loom_code %d)", code);
        } else {
            return complain("header: buffer %llu is neither nil, with a frame, nor a reference", (unsigned long long)i);
        }
        buffers->count++;
    }
    if (answer->body_in_buffers) {
        if (!buffers->count) return complain("the answer has no body");
        const struct arena_view *last = &buffers->views[buffers->count - 1];
        answer->body = (struct mp_reader){last->data, last->data + last->size};
    }
    return 0;
}

/* --- The tensor ------------------------------------------------------------------------------------------------- */

/* The body's array: `count` float64 in buffer `index`. */
static int read_array(struct mp_reader body, uint64_t *count, uint64_t *index) {
    struct mp_item array = mp_next(&body);
    if (array.kind != MP_EXT || array.type != NDARRAY) return complain("the method returned no array");
    struct mp_reader at = {array.data, array.data + array.size};
    struct mp_item head = mp_next(&at), dtype = mp_next(&at);
    if (head.kind != MP_ARRAY || head.number != 3) return complain("malformed array");
    if (!mp_is(dtype, "<f8")) {
        if (dtype.kind != MP_STRING) return complain("expected an array of float64, got one of records");
        return complain("expected an array of float64 (<f8), got %.*s", (int)dtype.size, dtype.data);
    }
    struct mp_item shape = mp_next(&at);
    if (shape.kind != MP_ARRAY) return complain("malformed array");
    *count = 1;
    for (uint64_t i = 0; i < shape.number; i++) {
        struct mp_item length = mp_next(&at);
        if (length.kind != MP_UINT || (length.number && *count > UINT64_MAX / sizeof(double) / length.number))
            return complain("malformed array");
        *count *= length.number;
    }
    struct mp_item buffer = mp_next(&at);
    *index = buffer.number;
    return buffer.kind == MP_UINT ? 0 : complain("malformed array");
}

static int sum(const struct answer *answer, const struct buffers *buffers, double *total) {
    uint64_t count = 0, index = 0;
    if (read_array(answer->body, &count, &index)) return -1;
    if (index >= buffers->count || buffers->views[index].size < count * sizeof(double))
        return complain("the array is longer than its buffer");
    const unsigned char *data = buffers->views[index].data;
    *total = 0.0;
    for (uint64_t i = 0; i < count; i++) {
        double value; /* copied, for a frame's bytes need not be aligned; little-endian is what this machine is too */
        memcpy(&value, data + i * sizeof value, sizeof value);
        *total += value;
    }
    return 0;
}

static int run(void *context, struct arena *arena, const char *node, char **arguments, int count) {
    char endpoint[512];
    if (ask_text(context, node, "resolve", arguments, 1, "endpoint", endpoint, sizeof endpoint)) return -1;
    struct answer answer = {.count = 0};
    struct buffers buffers = {.count = 0};
    double total = 0.0;
    if (ask(context, endpoint, arguments[1], arguments + 2, count - 2, (int)arena->participant, &answer)) return -1;
    int failed = take_buffers(arena, &answer, &buffers);
    if (!failed) failed = sum(&answer, &buffers, &total);
    for (size_t i = 0; i < buffers.count; i++) arena_release(arena, &buffers.views[i]);
    forget(&answer);
    if (!failed) printf("%.17g\n", total);
    return failed;
}

int main(int argc, char **argv) {
    if (argc < 4) {
        complain("usage: sum_tensor NODE_ENDPOINT ACTOR METHOD [ARGUMENT...]");
        return 2;
    }
    char name[LOOM_NAME_MAX + 1];
    void *context = zmq_ctx_new();
    int failed = context ? 0 : complain("no context: %s", zmq_strerror(zmq_errno()));
    if (!failed) failed = ask_text(context, argv[1], "info", NULL, 0, "arena", name, sizeof name);
    if (!failed) {
        struct arena arena;
        int code = arena_open(&arena, name);
        if (code) {
            failed = complain("arena %s cannot be opened (loom_code %d)", name, code);
        } else {
            failed = run(context, &arena, argv[1], argv + 2, argc - 2);
            arena_close(&arena);
        }
    }
    if (context) zmq_ctx_term(context);
    return failed ? 1 : 0;
}
