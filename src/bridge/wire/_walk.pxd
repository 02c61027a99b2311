cpdef int survey(object value, Py_ssize_t limit=*, int levels=*, Py_ssize_t longest=*) except -1
cpdef object substitute(object value, object make)
cpdef object fill(object value, object open)
