"""Fields of structs, read from their places in memory: looking an attribute up takes ten times as long."""

cdef extern from *:
    """
    #include <structmember.h>

    /* The offset of the slot that `descriptor` describes in instances of its type; 0 if it describes none. */
    static Py_ssize_t bridge_slot_offset(PyObject *descriptor) {
        if (Py_TYPE(descriptor) != &PyMemberDescr_Type) return 0;
        PyMemberDef *member = ((PyMemberDescrObject *)descriptor)->d_member;
        return member->type == T_OBJECT_EX ? member->offset : 0;
    }

    /* Returns a new reference to what is in a slot. */
    static PyObject *bridge_slot(PyObject *value, Py_ssize_t offset) {
        PyObject *held = *(PyObject **)((char *)value + offset);
        if (held == NULL) PyErr_SetString(PyExc_AttributeError, "a field of the struct is unset");
        Py_XINCREF(held);
        return held;
    }
    """
    Py_ssize_t bridge_slot_offset(object descriptor)
    object bridge_slot(object value, Py_ssize_t offset)


cdef inline Py_ssize_t offset_of(kind, str name) except -1:
    """Return where the field `name` is in structs of the type `kind`, as an offset for `field_at`."""
    cdef Py_ssize_t offset = bridge_slot_offset(getattr(kind, name))
    if offset == 0:
        raise TypeError(f"{kind.__name__}.{name} is not a field of a struct")
    return offset


cdef inline object field_at(object struct, Py_ssize_t offset):
    """Return the value of the field whose offset in the type of `struct` is `offset`."""
    return bridge_slot(struct, offset)


cdef inline tuple offsets_of(kind):
    """Return the offsets of all fields of a type of structs, in their order."""
    return tuple([offset_of(kind, name) for name in kind.__struct_fields__])
