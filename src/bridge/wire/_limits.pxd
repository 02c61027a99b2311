from libc.stdint cimport uint64_t

from bridge._framing cimport Frame

cpdef Frame limited(Frame envelope, Py_ssize_t max_frame, uint64_t max_values)
