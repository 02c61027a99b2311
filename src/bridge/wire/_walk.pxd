cpdef int survey(object value, Py_ssize_t limit=*, int levels=*) except -1
cpdef object resolve(object value, object make)
cpdef object opened(object value, object open)
