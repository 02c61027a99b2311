cpdef int apart_in(object value) except -1
cpdef object resolve(object value, object make)
cpdef object opened(object value, object open)
