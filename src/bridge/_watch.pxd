cpdef bint in_fork() noexcept
