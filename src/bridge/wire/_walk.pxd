cpdef int survey(object value, Py_ssize_t limit=*, int levels=*, Py_ssize_t longest=*) except -1
cpdef object refer_to_long_binaries(object value, list buffers, Py_ssize_t longest)
cpdef object substitute(object value, object make)
cpdef object fill(object value, object open)
