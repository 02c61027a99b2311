cdef bint in_fork() noexcept
