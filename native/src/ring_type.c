/* ring_type.c -- loom._native.Inbox and Lane: the shared-memory mailbox's two ends as Python types. It converts, and
 * decides nothing but how long to spin.
 *
 * A Lane's calls are made under its channel's lock, but for `spin`, which reads two shared words.
 */
#ifndef Py_LIMITED_API
#define Py_LIMITED_API 0x030B0000
#endif
#define PY_SSIZE_T_CLEAN
#define _GNU_SOURCE
#include <Python.h>
#include <errno.h>
#include <string.h>
#include <time.h>

#include "loom_ring.h"
#include "ring_type.h"

typedef struct {
    PyObject_HEAD
    loom_inbox *inbox;               /* NULL once closed */
    PyObject *routes[LOOM_LANES];    /* what `receive` calls a lane; made when first needed */
} Inbox;

typedef struct {
    PyObject_HEAD
    loom_lane *lane;   /* NULL once closed */
    loom_lane *doomed; /* closed while somebody spins on it: the last of them frees it */
    Py_ssize_t spinning;
} Lane;

/* OSError for what the system refused, else ValueError with the code in front. */
static PyObject *raise_ring(int code) {
    if (code == LOOM_RING_OS) return PyErr_SetFromErrno(PyExc_OSError);
    if (code == LOOM_RING_MEMORY) return PyErr_NoMemory();
    if (code == LOOM_RING_NOT_FOUND) errno = ENOENT;
    if (code == LOOM_RING_DENIED) errno = EACCES;
    if (code == LOOM_RING_FULL) errno = ENOSPC;
    if (code == LOOM_RING_NOT_FOUND || code == LOOM_RING_DENIED || code == LOOM_RING_FULL)
        return PyErr_SetFromErrno(PyExc_OSError);
    return PyErr_Format(PyExc_ValueError, "%s", loom_ring_text(code));
}

static PyObject *closed(void) {
    PyErr_SetString(PyExc_ValueError, "the mailbox is closed");
    return NULL;
}

static void relax(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
}

static uint64_t now_ns(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec;
}

/* --- Inbox ------------------------------------------------------------------------------------------------------ */

static PyObject *inbox_new(PyTypeObject *type, PyObject *arguments, PyObject *keywords) {
    const char *name;
    PyObject *bells;
    if (keywords && PyDict_Size(keywords)) return PyErr_Format(PyExc_TypeError, "Inbox takes no keyword arguments");
    if (!PyArg_ParseTuple(arguments, "sO&", &name, PyUnicode_FSConverter, &bells)) return NULL;
    allocfunc allocate = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    Inbox *self = (Inbox *)allocate(type, 0);
    int code = self ? loom_inbox_create(name, PyBytes_AsString(bells), &self->inbox) : LOOM_RING_MEMORY, failed = errno;
    Py_DECREF(bells);
    if (!code) return (PyObject *)self;
    Py_XDECREF((PyObject *)self);
    errno = failed;
    return raise_ring(code);
}

static PyObject *inbox_close(Inbox *self, PyObject *Py_UNUSED(ignored)) {
    if (self->inbox) loom_inbox_close(self->inbox);
    self->inbox = NULL;
    Py_RETURN_NONE;
}

static void inbox_dealloc(Inbox *self) {
    PyTypeObject *type = Py_TYPE((PyObject *)self);
    if (self->inbox) loom_inbox_close(self->inbox);
    for (uint32_t lane = 0; lane < LOOM_LANES; lane++) Py_XDECREF(self->routes[lane]);
    freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);
    release(self);
    Py_DECREF((PyObject *)type);
}

static PyObject *route_of(Inbox *self, uint32_t lane) {
    if (!self->routes[lane]) {
        const unsigned char bytes[3] = {0, (unsigned char)(lane >> 8), (unsigned char)lane};
        self->routes[lane] = PyBytes_FromStringAndSize((const char *)bytes, sizeof bytes);
    }
    return self->routes[lane] ? Py_NewRef(self->routes[lane]) : NULL;
}

/* A list of route and message, None for nothing now. A damaged lane is a list of the route alone, once. */
static PyObject *inbox_receive(Inbox *self, PyObject *Py_UNUSED(ignored)) {
    uint32_t lane, size;
    const void *data;
    if (!self->inbox) return closed();
    int code = loom_inbox_next(self->inbox, &lane, &data, &size);
    if (code == LOOM_RING_EMPTY) Py_RETURN_NONE;
    if (code && code != LOOM_RING_CORRUPT) return raise_ring(code);
    PyObject *parts = PyList_New(code ? 1 : 2), *route = parts ? route_of(self, lane) : NULL;
    if (!route || PyList_SetItem(parts, 0, route)) goto failed;
    if (code) return parts;
    PyObject *message = PyBytes_FromStringAndSize(data, (Py_ssize_t)size);
    if (!message || PyList_SetItem(parts, 1, message)) goto failed;
    loom_inbox_take(self->inbox);
    return parts;
failed:
    Py_XDECREF(parts);
    return NULL;
}

static PyObject *inbox_answer(Inbox *self, PyObject *const *arguments, Py_ssize_t count) {
    char *route, *data;
    Py_ssize_t length, size;
    if (!self->inbox) return closed();
    if (count != 2) return PyErr_Format(PyExc_TypeError, "answer takes (route, message), got %zd arguments", count);
    if (PyBytes_AsStringAndSize(arguments[0], &route, &length)) return NULL;
    if (PyBytes_AsStringAndSize(arguments[1], &data, &size)) return NULL;
    if (length != 3 || route[0]) return PyErr_Format(PyExc_ValueError, "expected a route that receive() gave");
    uint32_t lane = (uint32_t)(unsigned char)route[1] << 8 | (unsigned char)route[2];
    int code = size > (Py_ssize_t)LOOM_RECORD_MAX ? LOOM_RING_LARGE
                                                  : loom_inbox_answer(self->inbox, lane, data, (uint32_t)size);
    if (code == LOOM_RING_OK) Py_RETURN_TRUE;
    if (code == LOOM_RING_FULL) Py_RETURN_NONE;
    if (code == LOOM_RING_NOBODY || code == LOOM_RING_CORRUPT) Py_RETURN_FALSE;
    return raise_ring(code);
}

static PyObject *inbox_reaches(Inbox *self, PyObject *route) {
    char *bytes;
    Py_ssize_t length;
    if (!self->inbox) return closed();
    if (PyBytes_AsStringAndSize(route, &bytes, &length)) return NULL;
    if (length != 3) Py_RETURN_FALSE;
    return PyBool_FromLong(
        loom_inbox_reaches(self->inbox, (uint32_t)(unsigned char)bytes[1] << 8 | (unsigned char)bytes[2]));
}

/* True when there is nothing and the bell will ring; looks for at most `spin_ns` before it says so. */
static PyObject *inbox_rest(Inbox *self, PyObject *argument) {
    unsigned long long spin_ns = PyLong_AsUnsignedLongLong(argument);
    if (spin_ns == (unsigned long long)-1 && PyErr_Occurred()) return NULL;
    if (!self->inbox) return closed();
    if (spin_ns) {
        int found = 0;
        Py_BEGIN_ALLOW_THREADS
        uint64_t end = now_ns() + spin_ns;
        do
            for (int i = 0; i < 32 && !found; i++, relax()) found = loom_inbox_ready(self->inbox);
        while (!found && now_ns() < end);
        Py_END_ALLOW_THREADS
        if (found) Py_RETURN_FALSE;
    }
    return PyBool_FromLong(loom_inbox_rest(self->inbox));
}

static PyObject *inbox_wake(Inbox *self, PyObject *Py_UNUSED(ignored)) {
    if (!self->inbox) return closed();
    loom_inbox_wake(self->inbox);
    Py_RETURN_NONE;
}

static PyObject *inbox_fd(Inbox *self, void *Py_UNUSED(closure)) {
    return self->inbox ? PyLong_FromLong(loom_inbox_bell(self->inbox)) : closed();
}

#define FAST(function) (PyCFunction)(void (*)(void))function, METH_FASTCALL

static PyMethodDef inbox_methods[] = {
    {"receive", (PyCFunction)inbox_receive, METH_NOARGS, "receive() -> [route, message], None when there is none now"},
    {"answer", FAST(inbox_answer),
     "answer(route, message) -> True; None when there is no room now, False when nobody is there"},
    {"reaches", (PyCFunction)inbox_reaches, METH_O, "reaches(route) -> whether the sender lives and listens"},
    {"rest", (PyCFunction)inbox_rest, METH_O, "rest(spin_ns) -> whether there is nothing, and the bell will ring"},
    {"wake", (PyCFunction)inbox_wake, METH_NOARGS, "wake(): the bell rang, or need not any more"},
    {"close", (PyCFunction)inbox_close, METH_NOARGS, "close(): unlink file and bell"},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef inbox_getset[] = {
    {"fd", (getter)inbox_fd, NULL, "The bell: readable means wake() and receive().", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot inbox_slots[] = {
    {Py_tp_doc, (void *)"Inbox(name, bells): the receiving end; see native/include/loom_ring.h."},
    {Py_tp_new, inbox_new},
    {Py_tp_dealloc, inbox_dealloc},
    {Py_tp_methods, inbox_methods},
    {Py_tp_getset, inbox_getset},
    {0, NULL},
};

static PyType_Spec inbox_spec = {
    .name = "loom._native.Inbox",
    .basicsize = sizeof(Inbox),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = inbox_slots,
};

/* --- Lane ------------------------------------------------------------------------------------------------------- */

static PyObject *lane_new(PyTypeObject *type, PyObject *arguments, PyObject *keywords) {
    const char *name;
    PyObject *bells;
    unsigned int index;
    if (keywords && PyDict_Size(keywords)) return PyErr_Format(PyExc_TypeError, "Lane takes no keyword arguments");
    if (!PyArg_ParseTuple(arguments, "sO&I", &name, PyUnicode_FSConverter, &bells, &index)) return NULL;
    allocfunc allocate = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    Lane *self = (Lane *)allocate(type, 0);
    int code = self ? loom_lane_open(name, PyBytes_AsString(bells), index, &self->lane) : LOOM_RING_MEMORY;
    int failed = errno;
    Py_DECREF(bells);
    if (!code) return (PyObject *)self;
    Py_XDECREF((PyObject *)self);
    errno = failed;
    return raise_ring(code);
}

static PyObject *lane_close(Lane *self, PyObject *Py_UNUSED(ignored)) {
    loom_lane *lane = self->lane;
    self->lane = NULL;
    if (lane && self->spinning)
        self->doomed = lane;
    else if (lane)
        loom_lane_close(lane);
    Py_RETURN_NONE;
}

static void lane_dealloc(Lane *self) {
    PyTypeObject *type = Py_TYPE((PyObject *)self);
    if (self->lane) loom_lane_close(self->lane);
    freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);
    release(self);
    Py_DECREF((PyObject *)type);
}

static PyObject *lane_send(Lane *self, PyObject *argument) {
    char *data;
    Py_ssize_t size;
    if (!self->lane) return closed();
    if (PyBytes_AsStringAndSize(argument, &data, &size)) return NULL;
    int code = size > (Py_ssize_t)LOOM_RECORD_MAX ? LOOM_RING_LARGE : loom_lane_send(self->lane, data, (uint32_t)size);
    if (code == LOOM_RING_OK) Py_RETURN_TRUE;
    if (code == LOOM_RING_FULL) Py_RETURN_FALSE;
    return raise_ring(code);
}

static PyObject *lane_receive(Lane *self, PyObject *Py_UNUSED(ignored)) {
    const void *data;
    uint32_t size;
    if (!self->lane) return closed();
    int code = loom_lane_next(self->lane, &data, &size);
    if (code == LOOM_RING_EMPTY) Py_RETURN_NONE;
    if (code) return raise_ring(code);
    PyObject *message = PyBytes_FromStringAndSize(data, (Py_ssize_t)size);
    if (message) loom_lane_take(self->lane);
    return message;
}

static PyObject *lane_spin(Lane *self, PyObject *argument) {
    unsigned long long spin_ns = PyLong_AsUnsignedLongLong(argument);
    if (spin_ns == (unsigned long long)-1 && PyErr_Occurred()) return NULL;
    if (!self->lane) return closed();
    loom_lane *lane = self->lane;
    int found = loom_lane_ready(lane);
    if (!found && spin_ns) {
        self->spinning++;
        Py_BEGIN_ALLOW_THREADS
        uint64_t end = now_ns() + spin_ns;
        do
            for (int i = 0; i < 32 && !found; i++, relax()) found = loom_lane_ready(lane);
        while (!found && now_ns() < end);
        Py_END_ALLOW_THREADS
        if (!--self->spinning && self->doomed) {
            loom_lane_close(self->doomed);
            self->doomed = NULL;
        }
    }
    return PyBool_FromLong(found);
}

static PyObject *lane_rest(Lane *self, PyObject *Py_UNUSED(ignored)) {
    return self->lane ? PyBool_FromLong(loom_lane_rest(self->lane)) : closed();
}

static PyObject *lane_wake(Lane *self, PyObject *Py_UNUSED(ignored)) {
    if (!self->lane) return closed();
    loom_lane_wake(self->lane);
    Py_RETURN_NONE;
}

static PyObject *lane_fd(Lane *self, void *Py_UNUSED(closure)) {
    return self->lane ? PyLong_FromLong(loom_lane_bell(self->lane)) : closed();
}

static PyMethodDef lane_methods[] = {
    {"send", (PyCFunction)lane_send, METH_O, "send(message) -> True; False when there is no room now"},
    {"receive", (PyCFunction)lane_receive, METH_NOARGS, "receive() -> the next answer, None when there is none now"},
    {"spin", (PyCFunction)lane_spin, METH_O, "spin(spin_ns) -> whether an answer is there, looking for at most so long"},
    {"rest", (PyCFunction)lane_rest, METH_NOARGS, "rest() -> whether there is nothing, and the bell will ring"},
    {"wake", (PyCFunction)lane_wake, METH_NOARGS, "wake(): empty the bell"},
    {"close", (PyCFunction)lane_close, METH_NOARGS, "close(): unlink the bell; what was sent stays"},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef lane_getset[] = {
    {"fd", (getter)lane_fd, NULL, "The bell: readable means wake() and receive().", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot lane_slots[] = {
    {Py_tp_doc, (void *)"Lane(name, bells, participant): a sender's end; see native/include/loom_ring.h."},
    {Py_tp_new, lane_new},
    {Py_tp_dealloc, lane_dealloc},
    {Py_tp_methods, lane_methods},
    {Py_tp_getset, lane_getset},
    {0, NULL},
};

static PyType_Spec lane_spec = {
    .name = "loom._native.Lane",
    .basicsize = sizeof(Lane),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = lane_slots,
};

static int add(PyObject *module, PyType_Spec *spec) {
    PyObject *type = PyType_FromModuleAndSpec(module, spec, NULL);
    int failed = !type || PyModule_AddType(module, (PyTypeObject *)type);
    Py_XDECREF(type);
    return failed;
}

int ring_type_add(PyObject *module) {
    if (add(module, &inbox_spec) || add(module, &lane_spec)) return -1;
    return PyModule_AddIntConstant(module, "RECORD_MAX", LOOM_RECORD_MAX);
}
