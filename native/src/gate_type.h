/* gate_type.h -- adds loom._native.Gate to the module. */
#ifndef LOOM_GATE_TYPE_H
#define LOOM_GATE_TYPE_H

#include <Python.h>

int gate_type_add(PyObject *module);

#endif
