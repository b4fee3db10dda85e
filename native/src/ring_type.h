/* ring_type.h -- adds loom._native.Inbox and loom._native.Lane to the module. */
#ifndef LOOM_RING_TYPE_H
#define LOOM_RING_TYPE_H

#include <Python.h>

int ring_type_add(PyObject *module);

#endif
