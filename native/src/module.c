/* module.c -- loom._native: the arena core as two Python types. It converts, and decides nothing.
 *
 * Limited API of Python 3.11 (the first with the buffer protocol), so one binary serves every later version.
 * Calls that may make or map files, or copy much, run without the GIL; the warm path keeps it.
 */
#ifndef Py_LIMITED_API
#define Py_LIMITED_API 0x030B0000
#endif
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <structmember.h>
#include <unistd.h>

#include "gate_type.h"
#include "loom_arena.h"
#include "ring_type.h"

#define COPY_WITHOUT_GIL (256 * 1024) /* bytes; below, giving the GIL up costs more than the copy */

typedef struct {
    PyTypeObject *handle_type, *block_type;
    PyObject *error;
} module_state;

typedef struct {
    PyObject_HEAD
    loom_arena *arena;         /* NULL once closed */
    Py_ssize_t busy;           /* calls that run without the GIL */
    int closing;               /* close when the last of them returns */
    PyTypeObject *block_type;
    PyObject *error;
} Handle;

typedef struct {
    PyObject_HEAD
    Handle *handle;
    loom_view view;
    Py_ssize_t exports;
} Block;

static PyObject *raise_code(PyObject *error, int code) {
    int failed = errno;
    if (code == LOOM_E_MEMORY) return PyErr_NoMemory();
    PyObject *arguments = Py_BuildValue("(isi)", code, loom_arena_text(code), code == LOOM_E_OS ? failed : 0);
    if (arguments) {
        PyErr_SetObject(error, arguments);
        Py_DECREF(arguments);
    }
    return NULL;
}

/* --- Calls without the GIL -------------------------------------------------------------------------------------- */

static int handle_ready(Handle *self) {
    if (self->arena && !self->closing) return 1;
    raise_code(self->error, LOOM_E_CLOSED);
    return 0;
}

static void handle_done(Handle *self) {
    if (--self->busy || !self->closing || !self->arena) return;
    loom_arena *arena = self->arena;
    self->arena = NULL;
    loom_arena_close(arena);
}

#define UNLOCKED(self, statement)                                                                                    \
    do {                                                                                                             \
        (self)->busy++;                                                                                              \
        Py_BEGIN_ALLOW_THREADS statement;                                                                            \
        Py_END_ALLOW_THREADS int failed_ = errno;                                                                    \
        handle_done(self);                                                                                           \
        errno = failed_;                                                                                             \
    } while (0)

/* --- Block ------------------------------------------------------------------------------------------------------ */

static PyObject *block_new(Handle *handle, const loom_view *view) {
    allocfunc allocate = (allocfunc)PyType_GetSlot(handle->block_type, Py_tp_alloc);
    Block *block = (Block *)allocate(handle->block_type, 0);
    if (!block) {
        loom_view dropped = *view;
        loom_arena_release(&dropped);
        return NULL;
    }
    block->view = *view;
    block->handle = (Handle *)Py_NewRef((PyObject *)handle);
    return (PyObject *)block;
}

static void block_dealloc(Block *self) {
    PyTypeObject *type = Py_TYPE((PyObject *)self);
    loom_arena_release(&self->view);
    Py_XDECREF((PyObject *)self->handle);
    freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);
    release(self);
    Py_DECREF((PyObject *)type);
}

static int block_getbuffer(Block *self, Py_buffer *buffer, int flags) {
    if (!self->view.arena) {
        buffer->obj = NULL;
        PyErr_SetString(PyExc_BufferError, "the block is released: take its views before release()");
        return -1;
    }
    const loom_view *view = &self->view;
    int code = PyBuffer_FillInfo(buffer, (PyObject *)self, view->data, (Py_ssize_t)view->size, view->readonly, flags);
    if (code == 0) self->exports++;
    return code;
}

static void block_releasebuffer(Block *self, Py_buffer *Py_UNUSED(buffer)) { self->exports--; }

static PyObject *block_release(Block *self, PyObject *Py_UNUSED(ignored)) {
    if (self->exports)
        return PyErr_Format(PyExc_BufferError, "%zd views of the block live: delete them first", self->exports);
    loom_arena_release(&self->view);
    Py_RETURN_NONE;
}

static PyObject *block_size(Block *self, void *Py_UNUSED(closure)) {
    return PyLong_FromUnsignedLongLong(self->view.size);
}
static PyObject *block_segment(Block *self, void *Py_UNUSED(closure)) {
    return PyLong_FromUnsignedLong(self->view.segment);
}
static PyObject *block_index(Block *self, void *Py_UNUSED(closure)) {
    return PyLong_FromUnsignedLong(self->view.block);
}
static PyObject *block_generation(Block *self, void *Py_UNUSED(closure)) {
    return PyLong_FromUnsignedLongLong(self->view.generation);
}
static PyObject *block_readonly(Block *self, void *Py_UNUSED(closure)) { return PyBool_FromLong(self->view.readonly); }
static PyObject *block_released(Block *self, void *Py_UNUSED(closure)) { return PyBool_FromLong(!self->view.arena); }
static Py_ssize_t block_length(Block *self) { return (Py_ssize_t)self->view.size; }

static PyObject *block_repr(Block *self) {
    return PyUnicode_FromFormat("<Block %u.%u generation %llu, %llu bytes%s%s>", self->view.segment, self->view.block,
                                (unsigned long long)self->view.generation, (unsigned long long)self->view.size,
                                self->view.readonly ? ", read-only" : "", self->view.arena ? "" : ", released");
}

static PyMethodDef block_methods[] = {
    {"release", (PyCFunction)block_release, METH_NOARGS,
     "End the hold now. Raises BufferError while views live; a second call does nothing."},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef block_getset[] = {
    {"size_bytes", (getter)block_size, NULL, "Bytes of the view.", NULL},
    {"segment", (getter)block_segment, NULL, "Index of the segment.", NULL},
    {"index", (getter)block_index, NULL, "Index of the block in its segment.", NULL},
    {"generation", (getter)block_generation, NULL, "Of the lease, unique in the arena.", NULL},
    {"readonly", (getter)block_readonly, NULL, "True when the block was accepted from elsewhere.", NULL},
    {"released", (getter)block_released, NULL, "True after release().", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot block_slots[] = {
    {Py_tp_doc, (void *)"A hold on one block of the arena; exports its bytes as a buffer, which keeps the hold alive."},
    {Py_tp_dealloc, (void *)block_dealloc},
    {Py_tp_repr, (void *)block_repr},
    {Py_tp_methods, block_methods},
    {Py_tp_getset, block_getset},
    {Py_sq_length, (void *)block_length},
    {Py_bf_getbuffer, (void *)block_getbuffer},
    {Py_bf_releasebuffer, (void *)block_releasebuffer},
    {0, NULL},
};

static PyType_Spec block_spec = {
    .name = "loom._native.Block",
    .basicsize = sizeof(Block),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = block_slots,
};

/* --- References ------------------------------------------------------------------------------------------------- */

static PyObject *reference_pack(const loom_reference *reference) {
    const uint64_t fields[8] = {
        reference->segment, reference->block,  reference->generation, reference->offset,
        reference->size,    reference->sender, reference->token,      reference->token_generation,
    };
    PyObject *tuple = PyTuple_New(8);
    for (Py_ssize_t i = 0; tuple && i < 8; i++) {
        PyObject *number = PyLong_FromUnsignedLongLong(fields[i]);
        if (!number || PyTuple_SetItem(tuple, i, number)) Py_CLEAR(tuple);
    }
    return tuple;
}

/* Whatever is no sequence of eight non-negative integers is a stale reference, not a TypeError: it came in a
 * message. */
static int reference_unpack(PyObject *object, loom_reference *reference) {
    uint64_t *const fields[8] = {
        &reference->segment, &reference->block,  &reference->generation, &reference->offset,
        &reference->size,    &reference->sender, &reference->token,      &reference->token_generation,
    };
    if (!PyTuple_Check(object) && !PyList_Check(object)) return 0;
    PyObject *tuple = PySequence_Tuple(object);
    int good = tuple && PyTuple_Size(tuple) == 8;
    for (Py_ssize_t i = 0; good && i < 8; i++) {
        PyObject *item = PyTuple_GetItem(tuple, i);
        good = PyLong_Check(item);
        if (good) *fields[i] = PyLong_AsUnsignedLongLong(item);
        if (PyErr_Occurred()) good = 0;
    }
    Py_XDECREF(tuple);
    PyErr_Clear();
    return good;
}

/* --- Handle ----------------------------------------------------------------------------------------------------- */

static void handle_close_now(Handle *self) {
    self->closing = 1;
    if (self->busy || !self->arena) return;
    loom_arena *arena = self->arena;
    self->arena = NULL;
    Py_BEGIN_ALLOW_THREADS
    loom_arena_close(arena);
    Py_END_ALLOW_THREADS
}

static void handle_dealloc(Handle *self) {
    PyTypeObject *type = Py_TYPE((PyObject *)self);
    if (self->arena) loom_arena_close(self->arena);
    Py_XDECREF((PyObject *)self->block_type);
    Py_XDECREF(self->error);
    freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);
    release(self);
    Py_DECREF((PyObject *)type);
}

static PyObject *handle_lease(Handle *self, PyObject *argument) {
    unsigned long long size = PyLong_AsUnsignedLongLong(argument);
    if (size == (unsigned long long)-1 && PyErr_Occurred()) return NULL;
    if (!handle_ready(self)) return NULL;
    loom_view view;
    int code = loom_arena_lease_warm(self->arena, size, &view);
    if (code == LOOM_E_FULL) UNLOCKED(self, code = loom_arena_lease(self->arena, size, &view));
    if (code == LOOM_E_FULL || code == LOOM_E_SLOTS) return PyLong_FromLong(code);
    return code ? raise_code(self->error, code) : block_new(self, &view);
}

typedef struct {
    const void *bytes;
    size_t size;
} piece;

static void copy_pieces(unsigned char *to, const piece *pieces, Py_ssize_t count) {
    for (Py_ssize_t i = 0; i < count; to += pieces[i++].size)
        if (pieces[i].size) memcpy(to, pieces[i].bytes, pieces[i].size);
}

static int send_copy(Handle *self, const piece *pieces, Py_ssize_t count, uint32_t receiver,
                     loom_reference *reference) {
    loom_view view;
    uint64_t size = 0;
    for (Py_ssize_t i = 0; i < count; i++) size += pieces[i].size;
    int code = loom_arena_lease_warm(self->arena, size, &view);
    if (code == LOOM_E_FULL) UNLOCKED(self, code = loom_arena_lease(self->arena, size, &view));
    if (code) return code;
    if (size >= COPY_WITHOUT_GIL)
        UNLOCKED(self, copy_pieces(view.data, pieces, count));
    else
        copy_pieces(view.data, pieces, count);
    code = loom_arena_hand_over(&view, receiver, reference);
    if (code) loom_arena_release(&view);
    return code;
}

/* What a send came to, for Python: (reference, copied), or the code of what may pass. */
static PyObject *send_result(Handle *self, int code, const loom_reference *reference, int copied) {
    if (code == LOOM_E_FULL || code == LOOM_E_SLOTS || code == LOOM_E_TOKENS) return PyLong_FromLong(code);
    if (code) return raise_code(self->error, code);
    PyObject *packed = reference_pack(reference), *result = PyTuple_New(2);
    if (!packed || !result || PyTuple_SetItem(result, 0, packed) ||
        PyTuple_SetItem(result, 1, Py_NewRef(copied ? Py_True : Py_False))) {
        if (!result) Py_XDECREF(packed);
        Py_XDECREF(result);
        if (self->arena) loom_arena_recall(self->arena, reference);
        return NULL;
    }
    return result;
}

/* Several bytes objects as one block. */
static PyObject *send_list(Handle *self, PyObject *list, uint32_t receiver) {
    PyObject *held = PyList_AsTuple(list); /* the list may change while the GIL is given up */
    if (!held) return NULL;
    Py_ssize_t count = PyTuple_Size(held);
    piece *pieces = malloc((size_t)(count + 1) * sizeof *pieces);
    PyObject *result = NULL;
    loom_reference reference;
    if (!pieces) PyErr_NoMemory();
    for (Py_ssize_t i = 0; pieces && i < count; i++) {
        char *bytes = NULL;
        Py_ssize_t size = 0;
        if (PyBytes_AsStringAndSize(PyTuple_GetItem(held, i), &bytes, &size)) goto done;
        pieces[i] = (piece){bytes, (size_t)size};
    }
    if (pieces) {
        int code = send_copy(self, pieces, count, receiver, &reference);
        result = send_result(self, code, &reference, 1);
    }
done:
    free(pieces);
    Py_DECREF(held);
    return result;
}

static PyObject *handle_send(Handle *self, PyObject *const *arguments, Py_ssize_t count) {
    if (count != 2) return PyErr_Format(PyExc_TypeError, "send takes (data, receiver), got %zd arguments", count);
    unsigned long receiver = PyLong_AsUnsignedLong(arguments[1]);
    if (receiver == (unsigned long)-1 && PyErr_Occurred()) return NULL;
    if (receiver > LOOM_ANY) return raise_code(self->error, LOOM_E_USAGE);
    if (!handle_ready(self)) return NULL;
    if (PyList_Check(arguments[0])) return send_list(self, arguments[0], (uint32_t)receiver);
    Py_buffer data;
    if (PyObject_GetBuffer(arguments[0], &data, PyBUF_ANY_CONTIGUOUS)) return NULL;
    loom_reference reference;
    int copied = 0, code = LOOM_E_CLOSED;
    if (self->arena && !self->closing) { /* the exporter ran Python code */
        code = loom_arena_send(self->arena, data.buf, (uint64_t)data.len, (uint32_t)receiver, &reference);
        if (code == LOOM_E_FOREIGN) {
            copied = 1;
            code = send_copy(self, &(piece){data.buf, (size_t)data.len}, 1, (uint32_t)receiver, &reference);
        }
    }
    int failed = errno;
    PyBuffer_Release(&data);
    errno = failed;
    return send_result(self, code, &reference, copied);
}

static PyObject *handle_accept(Handle *self, PyObject *argument) {
    loom_reference reference;
    loom_view view;
    if (!handle_ready(self)) return NULL;
    if (!reference_unpack(argument, &reference)) return raise_code(self->error, LOOM_E_STALE);
    int code = loom_arena_accept(self->arena, &reference, &view);
    return code ? raise_code(self->error, code) : block_new(self, &view);
}

static PyObject *handle_recall(Handle *self, PyObject *argument) {
    loom_reference reference;
    if (!handle_ready(self)) return NULL;
    if (!reference_unpack(argument, &reference)) Py_RETURN_FALSE;
    int code = loom_arena_recall(self->arena, &reference);
    if (code && code != LOOM_E_STALE) return raise_code(self->error, code);
    return PyBool_FromLong(code == LOOM_OK);
}

static PyObject *handle_holds(Handle *self, PyObject *argument) {
    Py_buffer data;
    if (PyObject_GetBuffer(argument, &data, PyBUF_ANY_CONTIGUOUS)) return NULL;
    int held = self->arena && !self->closing && loom_arena_holds(self->arena, data.buf, (uint64_t)data.len);
    PyBuffer_Release(&data);
    return PyBool_FromLong(held);
}

static PyObject *handle_count_copied(Handle *self, PyObject *argument) {
    unsigned long long bytes = PyLong_AsUnsignedLongLong(argument);
    if (bytes == (unsigned long long)-1 && PyErr_Occurred()) return NULL;
    if (!handle_ready(self)) return NULL;
    int code = loom_arena_count_copied(self->arena, bytes);
    if (code) return raise_code(self->error, code);
    Py_RETURN_NONE;
}

static PyObject *handle_reap(Handle *self, PyObject *const *arguments, Py_ssize_t count) {
    if (count != 2) return PyErr_Format(PyExc_TypeError, "reap takes (participant, revoke), got %zd arguments", count);
    unsigned long participant = PyLong_AsUnsignedLong(arguments[0]);
    if (participant == (unsigned long)-1 && PyErr_Occurred()) return NULL;
    int revoke = PyObject_IsTrue(arguments[1]), code;
    if (revoke < 0 || !handle_ready(self)) return NULL;
    if (participant >= LOOM_PARTICIPANTS) return raise_code(self->error, LOOM_E_USAGE);
    uint64_t in_flight = 0;
    UNLOCKED(self, code = loom_arena_reap(self->arena, (uint32_t)participant, revoke, &in_flight));
    return code ? raise_code(self->error, code) : PyLong_FromUnsignedLongLong(in_flight);
}

static PyObject *handle_sweep(Handle *self, PyObject *Py_UNUSED(ignored)) {
    int code;
    if (!handle_ready(self)) return NULL;
    UNLOCKED(self, code = loom_arena_sweep(self->arena));
    if (code) return raise_code(self->error, code);
    Py_RETURN_NONE;
}

static PyObject *handle_collect(Handle *self, PyObject *Py_UNUSED(ignored)) {
    int code;
    uint64_t open = 0;
    if (!handle_ready(self)) return NULL;
    UNLOCKED(self, code = loom_arena_collect(self->arena, &open));
    return code ? raise_code(self->error, code) : PyLong_FromUnsignedLongLong(open);
}

static PyObject *handle_trim(Handle *self, PyObject *Py_UNUSED(ignored)) {
    int code;
    uint64_t bytes = 0;
    if (!handle_ready(self)) return NULL;
    UNLOCKED(self, code = loom_arena_trim(self->arena, &bytes));
    return code ? raise_code(self->error, code) : PyLong_FromUnsignedLongLong(bytes);
}

static PyObject *handle_destroy(Handle *self, PyObject *Py_UNUSED(ignored)) {
    int code;
    if (!handle_ready(self)) return NULL;
    UNLOCKED(self, code = loom_arena_destroy(self->arena));
    if (code) return raise_code(self->error, code);
    Py_RETURN_NONE;
}

static PyObject *handle_stats(Handle *self, PyObject *Py_UNUSED(ignored)) {
    loom_stats stats;
    int code;
    if (!handle_ready(self)) return NULL;
    UNLOCKED(self, code = loom_arena_stats(self->arena, &stats));
    if (code) return raise_code(self->error, code);
    const uint64_t *fields = (const uint64_t *)&stats;
    Py_ssize_t count = (Py_ssize_t)(sizeof stats / sizeof *fields);
    PyObject *tuple = PyTuple_New(count);
    for (Py_ssize_t i = 0; tuple && i < count; i++) {
        PyObject *number = PyLong_FromUnsignedLongLong(fields[i]);
        if (!number || PyTuple_SetItem(tuple, i, number)) Py_CLEAR(tuple);
    }
    return tuple;
}

static PyObject *handle_participants(Handle *self, PyObject *Py_UNUSED(ignored)) {
    uint32_t count = 0;
    int code;
    if (!handle_ready(self)) return NULL;
    loom_participant_info *rows = PyMem_Calloc(LOOM_PARTICIPANTS, sizeof *rows);
    if (!rows) return PyErr_NoMemory();
    UNLOCKED(self, code = loom_arena_participants(self->arena, rows, LOOM_PARTICIPANTS, &count));
    PyObject *list = code ? raise_code(self->error, code) : PyList_New(0);
    for (uint32_t i = 0; list && i < count; i++) {
        PyObject *row = Py_BuildValue("(IIKO)", rows[i].index, rows[i].pid, (unsigned long long)rows[i].start_time,
                                      rows[i].alive ? Py_True : Py_False);
        if (!row || PyList_Append(list, row)) Py_CLEAR(list);
        Py_XDECREF(row);
    }
    PyMem_Free(rows);
    return list;
}

static PyObject *handle_segments(Handle *self, PyObject *Py_UNUSED(ignored)) {
    uint32_t count = 0;
    int code;
    if (!handle_ready(self)) return NULL;
    loom_segment_info *rows = PyMem_Calloc(LOOM_SEGMENTS, sizeof *rows);
    if (!rows) return PyErr_NoMemory();
    UNLOCKED(self, code = loom_arena_segments(self->arena, rows, LOOM_SEGMENTS, &count));
    PyObject *list = code ? raise_code(self->error, code) : PyList_New(0);
    for (uint32_t i = 0; list && i < count; i++) {
        PyObject *row = Py_BuildValue("(IIIKKO)", rows[i].index, rows[i].state, rows[i].owner,
                                      (unsigned long long)rows[i].sequence, (unsigned long long)rows[i].size,
                                      rows[i].spilled ? Py_True : Py_False);
        if (!row || PyList_Append(list, row)) Py_CLEAR(list);
        Py_XDECREF(row);
    }
    PyMem_Free(rows);
    return list;
}

static PyObject *holder_indices(const uint64_t *words) {
    Py_ssize_t count = 0, at = 0;
    for (uint32_t i = 0; i < LOOM_HOLDER_WORDS; i++) count += __builtin_popcountll(words[i]);
    PyObject *tuple = PyTuple_New(count);
    for (uint32_t i = 0; tuple && i < LOOM_PARTICIPANTS; i++) {
        if (!(words[i / 64] >> i % 64 & 1)) continue;
        PyObject *number = PyLong_FromUnsignedLong(i);
        if (!number || PyTuple_SetItem(tuple, at++, number)) Py_CLEAR(tuple);
    }
    return tuple;
}

static PyObject *handle_blocks(Handle *self, PyObject *argument) {
    uint32_t count = 0;
    int code;
    if (!handle_ready(self)) return NULL;
    unsigned long segment = PyLong_AsUnsignedLong(argument);
    if (segment == (unsigned long)-1 && PyErr_Occurred()) return NULL;
    if (segment >= LOOM_SEGMENTS) return raise_code(self->error, LOOM_E_USAGE);
    loom_block_info *rows = PyMem_Malloc(LOOM_BLOCKS_MAX * sizeof *rows);
    if (!rows) return PyErr_NoMemory();
    UNLOCKED(self, code = loom_arena_blocks(self->arena, (uint32_t)segment, rows, LOOM_BLOCKS_MAX, &count));
    PyObject *list = code ? raise_code(self->error, code) : PyList_New(0);
    for (uint32_t i = 0; list && i < count; i++) {
        PyObject *row = Py_BuildValue("(IIIKKdN)", rows[i].segment, rows[i].block, rows[i].owner,
                                      (unsigned long long)rows[i].size, (unsigned long long)rows[i].generation,
                                      (double)rows[i].age_ns / 1e9, holder_indices(rows[i].holders));
        if (!row || PyList_Append(list, row)) Py_CLEAR(list);
        Py_XDECREF(row);
    }
    PyMem_Free(rows);
    return list;
}

static PyObject *handle_in_flight(Handle *self, PyObject *Py_UNUSED(ignored)) {
    uint32_t counts[LOOM_PARTICIPANTS];
    int code;
    if (!handle_ready(self)) return NULL;
    UNLOCKED(self, code = loom_arena_in_flight(self->arena, counts));
    PyObject *list = code ? raise_code(self->error, code) : PyList_New(0);
    for (uint32_t i = 0; list && i < LOOM_PARTICIPANTS; i++) {
        if (!counts[i]) continue;
        PyObject *row = Py_BuildValue("(II)", i, counts[i]);
        if (!row || PyList_Append(list, row)) Py_CLEAR(list);
        Py_XDECREF(row);
    }
    return list;
}

static PyObject *handle_close(Handle *self, PyObject *Py_UNUSED(ignored)) {
    handle_close_now(self);
    Py_RETURN_NONE;
}

static PyObject *handle_abandon(Handle *self, PyObject *Py_UNUSED(ignored)) {
    if (!handle_ready(self)) return NULL;
    if (self->busy) return raise_code(self->error, LOOM_E_USAGE);
    loom_arena *arena = self->arena;
    self->arena = NULL;
    self->closing = 1;
    loom_arena_abandon(arena);
    Py_RETURN_NONE;
}

static PyObject *handle_participant(Handle *self, void *Py_UNUSED(closure)) {
    return handle_ready(self) ? PyLong_FromUnsignedLong(loom_arena_participant(self->arena)) : NULL;
}
static PyObject *handle_budget(Handle *self, void *Py_UNUSED(closure)) {
    return handle_ready(self) ? PyLong_FromUnsignedLongLong(loom_arena_budget(self->arena)) : NULL;
}
static PyObject *handle_name(Handle *self, void *Py_UNUSED(closure)) {
    return handle_ready(self) ? PyUnicode_FromString(loom_arena_name(self->arena)) : NULL;
}
static PyObject *handle_full(Handle *self, void *Py_UNUSED(closure)) {
    return handle_ready(self) ? PyLong_FromUnsignedLong(loom_arena_full(self->arena)) : NULL;
}
static PyObject *handle_wait_s(Handle *self, void *Py_UNUSED(closure)) {
    return handle_ready(self) ? PyFloat_FromDouble((double)loom_arena_wait_ns(self->arena) / 1e9) : NULL;
}
static PyObject *handle_spill(Handle *self, void *Py_UNUSED(closure)) {
    return handle_ready(self) ? PyUnicode_DecodeFSDefault(loom_arena_spill(self->arena)) : NULL;
}
static PyObject *handle_closed(Handle *self, void *Py_UNUSED(closure)) {
    return PyBool_FromLong(!self->arena || self->closing);
}

static PyMethodDef handle_methods[] = {
    {"lease", (PyCFunction)handle_lease, METH_O, "lease(size_bytes) -> Block, or a code when there is no room"},
    {"send", (PyCFunction)(void (*)(void))handle_send, METH_FASTCALL,
     "send(data, receiver) -> (reference, copied), or a code when there is no room"},
    {"accept", (PyCFunction)handle_accept, METH_O, "accept(reference) -> Block"},
    {"recall", (PyCFunction)handle_recall, METH_O, "recall(reference) -> bool"},
    {"holds", (PyCFunction)handle_holds, METH_O, "holds(data) -> bool"},
    {"count_copied", (PyCFunction)handle_count_copied, METH_O, "count_copied(size_bytes)"},
    {"reap", (PyCFunction)(void (*)(void))handle_reap, METH_FASTCALL,
     "reap(participant, revoke) -> references in flight"},
    {"sweep", (PyCFunction)handle_sweep, METH_NOARGS, "sweep()"},
    {"collect", (PyCFunction)handle_collect, METH_NOARGS,
     "collect() -> references and spilled blocks for which to look again"},
    {"trim", (PyCFunction)handle_trim, METH_NOARGS, "trim() -> bytes given back"},
    {"destroy", (PyCFunction)handle_destroy, METH_NOARGS, "destroy()"},
    {"stats", (PyCFunction)handle_stats, METH_NOARGS, "stats() -> the fields of loom_stats, in order"},
    {"participants", (PyCFunction)handle_participants, METH_NOARGS,
     "participants() -> [(index, pid, start_time, alive)]"},
    {"segments", (PyCFunction)handle_segments, METH_NOARGS,
     "segments() -> [(index, state, owner, sequence, size_bytes, spilled)]"},
    {"blocks", (PyCFunction)handle_blocks, METH_O,
     "blocks(segment) -> [(segment, index, owner, size_bytes, generation, age_s, holders)]"},
    {"in_flight", (PyCFunction)handle_in_flight, METH_NOARGS, "in_flight() -> [(sender, references)]"},
    {"close", (PyCFunction)handle_close, METH_NOARGS, "close()"},
    {"abandon", (PyCFunction)handle_abandon, METH_NOARGS, "abandon(): imitate a death, for tests"},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef handle_getset[] = {
    {"participant", (getter)handle_participant, NULL, "This process's index.", NULL},
    {"budget_bytes", (getter)handle_budget, NULL, "The node's budget.", NULL},
    {"name", (getter)handle_name, NULL, "The arena's name.", NULL},
    {"full", (getter)handle_full, NULL, "What to do when there is no room: WAIT, RAISE or SPILL.", NULL},
    {"wait_s", (getter)handle_wait_s, NULL, "How long to wait for room.", NULL},
    {"spill", (getter)handle_spill, NULL, "The folder of spilled segments, '' for none.", NULL},
    {"closed", (getter)handle_closed, NULL, "True after close().", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot handle_slots[] = {
    {Py_tp_doc, (void *)"One process's handle on an arena: see native/include/loom_arena.h."},
    {Py_tp_dealloc, (void *)handle_dealloc},
    {Py_tp_methods, handle_methods},
    {Py_tp_getset, handle_getset},
    {0, NULL},
};

static PyType_Spec handle_spec = {
    .name = "loom._native.Handle",
    .basicsize = sizeof(Handle),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = handle_slots,
};

static PyObject *handle_new(PyObject *module, loom_arena *arena) {
    const module_state *state = PyModule_GetState(module);
    allocfunc allocate = (allocfunc)PyType_GetSlot(state->handle_type, Py_tp_alloc);
    Handle *handle = (Handle *)allocate(state->handle_type, 0);
    if (!handle) {
        loom_arena_close(arena);
        return NULL;
    }
    handle->arena = arena;
    handle->block_type = (PyTypeObject *)Py_NewRef((PyObject *)state->block_type);
    handle->error = Py_NewRef(state->error);
    return (PyObject *)handle;
}

/* --- Crash points ----------------------------------------------------------------------------------------------- */

static int crash_step = -1;
static long crash_countdown;

static void crash_hook(int step) {
    if (step != crash_step || --crash_countdown > 0) return;
    kill(getpid(), SIGKILL);
    for (;;) pause();
}

static PyObject *native_crash_at(PyObject *module, PyObject *arguments) {
    const module_state *state = PyModule_GetState(module);
    const char *name;
    long nth = 1;
    if (!PyArg_ParseTuple(arguments, "s|l", &name, &nth)) return NULL;
    for (int step = 0; step < LOOM_STEP_COUNT; step++) {
        if (strcmp(name, loom_arena_step_name(step))) continue;
        crash_step = step;
        crash_countdown = nth;
        loom_arena_step_hook = crash_hook;
        Py_RETURN_NONE;
    }
    return raise_code(state->error, LOOM_E_USAGE);
}

static PyObject *native_steps(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored)) {
    PyObject *tuple = PyTuple_New(LOOM_STEP_COUNT);
    for (int step = 0; tuple && step < LOOM_STEP_COUNT; step++) {
        PyObject *name = PyUnicode_FromString(loom_arena_step_name(step));
        if (!name || PyTuple_SetItem(tuple, step, name)) Py_CLEAR(tuple);
    }
    return tuple;
}

/* --- Module ----------------------------------------------------------------------------------------------------- */

static PyObject *native_create(PyObject *module, PyObject *arguments) {
    const module_state *state = PyModule_GetState(module);
    const char *name;
    unsigned long long budget, wait_ns;
    unsigned int full;
    PyObject *folder;
    if (!PyArg_ParseTuple(arguments, "sKIKO&", &name, &budget, &full, &wait_ns, PyUnicode_FSConverter, &folder))
        return NULL;
    const char *path = PyBytes_AsString(folder);
    const loom_policy policy = {full, wait_ns, *path ? path : NULL};
    loom_arena *arena;
    int code;
    Py_BEGIN_ALLOW_THREADS
    code = loom_arena_create(name, budget, &policy, &arena);
    Py_END_ALLOW_THREADS
    int failed = errno;
    Py_DECREF(folder);
    errno = failed;
    return code ? raise_code(state->error, code) : handle_new(module, arena);
}

static PyObject *native_attach(PyObject *module, PyObject *arguments) {
    const module_state *state = PyModule_GetState(module);
    const char *name;
    if (!PyArg_ParseTuple(arguments, "s", &name)) return NULL;
    loom_arena *arena;
    int code;
    Py_BEGIN_ALLOW_THREADS
    code = loom_arena_attach(name, &arena);
    Py_END_ALLOW_THREADS
    return code ? raise_code(state->error, code) : handle_new(module, arena);
}

static PyObject *native_destroy_files(PyObject *module, PyObject *arguments) {
    const module_state *state = PyModule_GetState(module);
    const char *name;
    if (!PyArg_ParseTuple(arguments, "s", &name)) return NULL;
    uint64_t count = 0;
    int code = loom_arena_destroy_files(name, &count);
    return code ? raise_code(state->error, code) : PyLong_FromUnsignedLongLong(count);
}

static PyObject *native_clear_spill(PyObject *module, PyObject *arguments) {
    const module_state *state = PyModule_GetState(module);
    PyObject *folder;
    if (!PyArg_ParseTuple(arguments, "O&", PyUnicode_FSConverter, &folder)) return NULL;
    uint64_t count = 0;
    int code = loom_arena_clear_spill(PyBytes_AsString(folder), &count), failed = errno;
    Py_DECREF(folder);
    errno = failed;
    return code ? raise_code(state->error, code) : PyLong_FromUnsignedLongLong(count);
}

static PyObject *native_start_time(PyObject *module, PyObject *argument) {
    const module_state *state = PyModule_GetState(module);
    unsigned long pid = PyLong_AsUnsignedLong(argument);
    if (pid == (unsigned long)-1 && PyErr_Occurred()) return NULL;
    uint64_t ticks;
    int code = pid > UINT32_MAX ? LOOM_E_NOT_FOUND : loom_process_start_time((uint32_t)pid, &ticks);
    if (code == LOOM_E_NOT_FOUND) Py_RETURN_NONE;
    return code ? raise_code(state->error, code) : PyLong_FromUnsignedLongLong(ticks);
}

static PyMethodDef native_methods[] = {
    {"create", native_create, METH_VARARGS, "create(name, budget_bytes, full, wait_ns, folder) -> Handle"},
    {"attach", native_attach, METH_VARARGS, "attach(name) -> Handle"},
    {"destroy_files", native_destroy_files, METH_VARARGS, "destroy_files(name) -> files unlinked"},
    {"clear_spill", native_clear_spill, METH_VARARGS, "clear_spill(folder) -> spill folders of dead arenas removed"},
    {"start_time", native_start_time, METH_O, "start_time(pid) -> clock ticks since boot, or None when it is gone"},
    {"steps", native_steps, METH_NOARGS, "steps() -> names of the crash points"},
    {"crash_at", native_crash_at, METH_VARARGS, "crash_at(step, nth=1): SIGKILL this process at that step, for tests"},
    {NULL, NULL, 0, NULL},
};

static int native_exec(PyObject *module) {
    module_state *state = PyModule_GetState(module);
    state->handle_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &handle_spec, NULL);
    state->block_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &block_spec, NULL);
    state->error = PyErr_NewExceptionWithDoc("loom._native.Error", "args: (code, text, errno)", NULL, NULL);
    if (!state->handle_type || !state->block_type || !state->error) return -1;
    if (PyModule_AddType(module, state->handle_type) || PyModule_AddType(module, state->block_type) ||
        PyModule_AddObjectRef(module, "Error", state->error) || gate_type_add(module) || ring_type_add(module))
        return -1;
    static const struct {
        const char *name;
        long value;
    } constants[] = {
        {"FULL", LOOM_E_FULL}, {"TOKENS", LOOM_E_TOKENS}, {"STALE", LOOM_E_STALE}, {"CORRUPT", LOOM_E_CORRUPT},
        {"NOT_FOUND", LOOM_E_NOT_FOUND}, {"VERSION", LOOM_E_VERSION}, {"EXISTS", LOOM_E_EXISTS},
        {"SLOTS", LOOM_E_SLOTS}, {"FORKED", LOOM_E_FORKED}, {"CLOSED", LOOM_E_CLOSED}, {"USAGE", LOOM_E_USAGE},
        {"ALIVE", LOOM_E_ALIVE}, {"OS", LOOM_E_OS}, {"DENIED", LOOM_E_DENIED}, {"ABSENT", LOOM_E_ABSENT},
        {"WAIT", LOOM_FULL_WAIT}, {"RAISE", LOOM_FULL_RAISE}, {"SPILL", LOOM_FULL_SPILL},
        {"ANY", LOOM_ANY}, {"PARTICIPANTS", LOOM_PARTICIPANTS}, {"SEGMENTS", LOOM_SEGMENTS},
        {"TOKEN_LIMIT", LOOM_TOKENS}, {"ALIGNMENT", LOOM_ALIGNMENT}, {"LAYOUT_VERSION", LOOM_LAYOUT_VERSION},
    };
    for (size_t i = 0; i < sizeof constants / sizeof *constants; i++)
        if (PyModule_AddIntConstant(module, constants[i].name, constants[i].value)) return -1;
    return 0;
}

static int native_traverse(PyObject *module, visitproc visit, void *arg) {
    module_state *state = PyModule_GetState(module);
    Py_VISIT((PyObject *)state->handle_type);
    Py_VISIT((PyObject *)state->block_type);
    Py_VISIT(state->error);
    return 0;
}

static int native_clear(PyObject *module) {
    module_state *state = PyModule_GetState(module);
    Py_CLEAR(state->handle_type);
    Py_CLEAR(state->block_type);
    Py_CLEAR(state->error);
    return 0;
}

static PyModuleDef_Slot native_slots[] = {{Py_mod_exec, (void *)native_exec}, {0, NULL}};

static struct PyModuleDef native_module = {
    PyModuleDef_HEAD_INIT,
    .m_name = "loom._native",
    .m_doc = "The shared-memory arena's C core; loom.arena is its Python face.",
    .m_size = sizeof(module_state),
    .m_methods = native_methods,
    .m_slots = native_slots,
    .m_traverse = native_traverse,
    .m_clear = native_clear,
};

PyMODINIT_FUNC PyInit__native(void) { return PyModuleDef_Init(&native_module); }
