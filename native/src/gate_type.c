/* gate_type.c -- loom._native.Gate: the mailboxes' gates as a Python type. It converts, and decides nothing. */
#ifndef Py_LIMITED_API
#define Py_LIMITED_API 0x030B0000
#endif
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "gate_type.h"
#include "loom_mailbox.h"

typedef struct {
    PyObject_HEAD
    loom_mailboxes all;
    Py_buffer board, ledger;
} Gate;

static PyObject *gate_new(PyTypeObject *type, PyObject *arguments, PyObject *keywords) {
    PyObject *board, *ledger;
    if (keywords && PyDict_Size(keywords)) return PyErr_Format(PyExc_TypeError, "Gate takes no keyword arguments");
    if (!PyArg_ParseTuple(arguments, "OO", &board, &ledger)) return NULL;
    allocfunc allocate = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    Gate *self = (Gate *)allocate(type, 0);
    if (!self) return NULL;
    if (PyObject_GetBuffer(board, &self->board, PyBUF_WRITABLE) ||
        PyObject_GetBuffer(ledger, &self->ledger, PyBUF_WRITABLE)) {
        Py_DECREF((PyObject *)self);
        return NULL;
    }
    uint64_t rows = (uint64_t)self->board.len / (LOOM_BOARD_WORDS * 8u);
    uint64_t others = (uint64_t)self->ledger.len / LOOM_LEDGER_ROW_BYTES;
    self->all.board = self->board.buf;
    self->all.ledger = self->ledger.buf;
    self->all.rows = rows < others ? rows : others;
    return (PyObject *)self;
}

static void gate_drop(Gate *self) {
    self->all.rows = 0; /* every call answers NONE from now on */
    if (self->board.obj) PyBuffer_Release(&self->board);
    if (self->ledger.obj) PyBuffer_Release(&self->ledger);
}

static void gate_dealloc(Gate *self) {
    PyTypeObject *type = Py_TYPE((PyObject *)self);
    gate_drop(self);
    freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);
    release(self);
    Py_DECREF((PyObject *)type);
}

static PyObject *gate_close(Gate *self, PyObject *Py_UNUSED(ignored)) {
    gate_drop(self);
    Py_RETURN_NONE;
}

/* `count` numbers from the arguments, exactly; -1 with an exception. */
static int numbers(PyObject *const *arguments, Py_ssize_t given, Py_ssize_t count, uint64_t *into) {
    if (given != count) {
        PyErr_Format(PyExc_TypeError, "expected %zd numbers, got %zd", count, given);
        return -1;
    }
    for (Py_ssize_t i = 0; i < count; i++) {
        into[i] = PyLong_AsUnsignedLongLong(arguments[i]);
        if (into[i] == (uint64_t)-1 && PyErr_Occurred()) return -1;
    }
    return 0;
}

#define ARGUMENTS(count)                                                                                             \
    uint64_t n[count];                                                                                               \
    if (numbers(arguments, given, count, n)) return NULL

static PyObject *gate_open(Gate *self, PyObject *const *arguments, Py_ssize_t given) {
    ARGUMENTS(3);
    uint64_t ticket = 0;
    int code = loom_gate_open(&self->all, n[0], n[1], n[2], &ticket);
    return Py_BuildValue("iK", code, (unsigned long long)ticket);
}

static PyObject *gate_admit(Gate *self, PyObject *const *arguments, Py_ssize_t given) {
    ARGUMENTS(4);
    return PyLong_FromLong(loom_gate_admit(&self->all, n[0], n[1], n[2], n[3]));
}

static PyObject *gate_leave(Gate *self, PyObject *const *arguments, Py_ssize_t given) {
    ARGUMENTS(2);
    return PyLong_FromLong(loom_gate_leave(&self->all, n[0], n[1]));
}

static PyObject *gate_void(Gate *self, PyObject *const *arguments, Py_ssize_t given) {
    ARGUMENTS(3);
    uint64_t begun = 0, sent = 0, next = 0;
    int code = loom_gate_void(&self->all, n[0], n[1], n[2] != 0, &begun, &sent, &next);
    return Py_BuildValue("iKKK", code, (unsigned long long)begun, (unsigned long long)sent, (unsigned long long)next);
}

static PyObject *gate_begun(Gate *self, PyObject *const *arguments, Py_ssize_t given) {
    ARGUMENTS(2);
    uint64_t begun = 0;
    if (loom_gate_begun(&self->all, n[0], n[1], &begun)) return PyLong_FromLong(-1);
    return PyLong_FromUnsignedLongLong(begun);
}

static PyObject *gate_release(Gate *self, PyObject *const *arguments, Py_ssize_t given) {
    ARGUMENTS(2);
    return PyLong_FromLong(loom_gate_release(&self->all, n[0], n[1]));
}

static PyObject *gate_seal(Gate *self, PyObject *const *arguments, Py_ssize_t given) {
    ARGUMENTS(2);
    uint64_t count = 0;
    loom_gate_seal(&self->all, n[0], n[1], &count);
    return PyLong_FromUnsignedLongLong(count);
}

static PyObject *gate_reset(Gate *self, PyObject *const *arguments, Py_ssize_t given) {
    ARGUMENTS(1);
    return PyLong_FromLong(loom_gate_reset(&self->all, n[0]));
}

static PyObject *gate_add(Gate *self, PyObject *const *arguments, Py_ssize_t given) {
    ARGUMENTS(3);
    return PyLong_FromLong(loom_gate_add(&self->all, n[0], n[1], n[2]));
}

#define FAST(function) (PyCFunction)(void (*)(void))function, METH_FASTCALL

static PyMethodDef gate_methods[] = {
    {"open", FAST(gate_open), "open(row, term, owner) -> (code, ticket)"},
    {"admit", FAST(gate_admit), "admit(row, term, ticket, at_most) -> code"},
    {"leave", FAST(gate_leave), "leave(row, ticket) -> code"},
    {"void", FAST(gate_void), "void(row, ticket, moved) -> (code, begun, sent, next ticket)"},
    {"begun", FAST(gate_begun), "begun(row, ticket) -> how many have left the queue, -1 when the ticket is void"},
    {"release", FAST(gate_release), "release(row, ticket) -> code"},
    {"seal", FAST(gate_seal), "seal(row, term) -> count"},
    {"reset", FAST(gate_reset), "reset(row) -> code"},
    {"add", FAST(gate_add), "add(row, word, by) -> code"},
    {"close", (PyCFunction)gate_close, METH_NOARGS, "close(): let go of both files"},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot gate_slots[] = {
    {Py_tp_doc, (void *)"Gate(board, ledger): the gates of a node's mailboxes; see native/include/loom_mailbox.h."},
    {Py_tp_new, gate_new},
    {Py_tp_dealloc, gate_dealloc},
    {Py_tp_methods, gate_methods},
    {0, NULL},
};

static PyType_Spec gate_spec = {
    .name = "loom._native.Gate",
    .basicsize = sizeof(Gate),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = gate_slots,
};

int gate_type_add(PyObject *module) {
    PyObject *type = PyType_FromModuleAndSpec(module, &gate_spec, NULL);
    if (!type) return -1;
    int failed = PyModule_AddType(module, (PyTypeObject *)type);
    Py_DECREF(type);
    return failed || PyModule_AddIntConstant(module, "LEDGER_ROW_BYTES", LOOM_LEDGER_ROW_BYTES);
}
