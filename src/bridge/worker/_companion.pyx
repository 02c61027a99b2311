"""The companion: a small process without Python that outlives the worker briefly.

It forwards what the worker and its children write to stderr, so that they never wait for a host that does not read it:
if its buffer is full, lines are dropped and counted. When the worker has ended, in whatever way, it kills the worker's
process group, and processes that have left the group but have the worker's mark in their environment.
"""

from libc.stdint cimport uint64_t


cdef extern from *:
    """
    #ifndef _GNU_SOURCE
    #define _GNU_SOURCE
    #endif
    #include <dirent.h>
    #include <errno.h>
    #include <fcntl.h>
    #include <limits.h>
    #include <poll.h>
    #include <signal.h>
    #include <stdint.h>
    #include <stdio.h>
    #include <stdlib.h>
    #include <string.h>
    #include <sys/mman.h>
    #include <sys/socket.h>
    #include <sys/stat.h>
    #include <sys/wait.h>
    #include <time.h>
    #include <unistd.h>
    #ifdef __linux__
    #include <sys/prctl.h>
    #include <sys/syscall.h>
    #endif

    enum {
        PENDING_BYTES = 1 << 20,   /* for a host that does not read */
        NOTICE_BYTES = 256,        /* for the line that reports how many were lost */
        FLUSH_MS = 1000,           /* for pending bytes at the end */
        CHECK_MS = 500,            /* without a pidfd the parent is checked twice a second */
        HIGHEST_FD = 65536,
        ENVIRONMENT_BYTES = 1 << 18,
        ROUNDS = 8                 /* of killing, because a process may fork while it is being killed */
    };

    #define COMPANION_NAME "bridge-beside"

    typedef struct {
        int relay, control, output, worker_fd, kind;
        int leads;                 /* the worker's group has no foreign processes */
        pid_t worker;
        const char *mark;          /* in the environment of the worker's children */
        volatile uint64_t *lost;
        uint64_t reported;
        int dropping;              /* the rest of the current line is dropped too */
        size_t start, end;
    } companion;

    static char companion_pending[PENDING_BYTES];
    static volatile uint64_t *companion_lost;
    static pid_t companion_pid;
    static int companion_control = -1;

    static int64_t companion_now_ms(void) {
        struct timespec now;
        clock_gettime(CLOCK_MONOTONIC, &now);
        return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
    }

    static void companion_close_all_but(const int *needed, int count) {
        for (int fd = 0; fd < HIGHEST_FD; fd++) {
            int keep = 0, next = HIGHEST_FD;
            for (int i = 0; i < count; i++) {
                keep |= needed[i] == fd;
                if (needed[i] > fd && needed[i] < next) next = needed[i];
            }
            if (keep) continue;
    #ifdef SYS_close_range
            if (syscall(SYS_close_range, fd, next == HIGHEST_FD ? ~0U : (unsigned)next - 1, 0) == 0) {
                fd = next - 1;
                continue;
            }
    #endif
            close(fd);
        }
    }

    /* Open the pipe again, because the flags of the inherited descriptor are shared with the host. */
    static int companion_reopened(int fd) {
        char path[32];
        snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
        int own = open(path, O_WRONLY | O_NONBLOCK | O_CLOEXEC);
        return own < 0 ? fd : own;
    }

    static void companion_append(companion *self, const char *data, size_t size, size_t capacity) {
        if (self->end + size > capacity) {
            memmove(companion_pending, companion_pending + self->start, self->end - self->start);
            self->end -= self->start;
            self->start = 0;
        }
        memcpy(companion_pending + self->end, data, size);
        self->end += size;
    }

    static size_t companion_free(companion *self) {
        return PENDING_BYTES - NOTICE_BYTES - (self->end - self->start);
    }

    /* Append whole lines: a line that does not fit is dropped, and the part already appended is ended. */
    static void companion_take(companion *self, const char *data, size_t size) {
        while (size) {
            const char *newline = memchr(data, '\\n', size);
            size_t length = newline ? (size_t)(newline - data) + 1 : size;
            if (!self->dropping && length < companion_free(self)) {
                companion_append(self, data, length, PENDING_BYTES - NOTICE_BYTES);
            } else {
                if (!self->dropping) {
                    ++*self->lost;
                    if (self->end > self->start && companion_pending[self->end - 1] != '\\n')
                        companion_append(self, "\\n", 1, PENDING_BYTES);
                }
                self->dropping = !newline;
            }
            data += length;
            size -= length;
        }
    }

    static void companion_report(companion *self) {
        uint64_t lost = *self->lost - self->reported;
        if (!lost || self->dropping) return;
        char text[NOTICE_BYTES], stamp[32];
        time_t now = time(NULL);
        struct tm parts;
        localtime_r(&now, &parts);
        strftime(stamp, sizeof stamp, "%Y-%m-%dT%H:%M:%S", &parts);
        const char *format = getenv("BRIDGE_LOG_FORMAT");
        int size = format && strcmp(format, "text") == 0
            ? snprintf(text, sizeof text, "%llu log lines lost, because stderr was not read\\n",
                       (unsigned long long)lost)
            : snprintf(text, sizeof text,
            "{\\"time\\":\\"%s\\",\\"level\\":\\"WARNING\\",\\"logger\\":\\"bridge.worker\\","
            "\\"message\\":\\"%llu log lines lost, because stderr was not read\\"}\\n",
            stamp, (unsigned long long)lost);
        companion_append(self, text, (size_t)size, PENDING_BYTES);
        self->reported = *self->lost;
    }

    /* Read all available bytes; return 0 when no writer is left. */
    static int companion_read(companion *self) {
        char data[65536];
        for (int round = 0; round < 64; round++) {
            ssize_t got = read(self->relay, data, sizeof data);
            if (got == 0) return 0;
            if (got < 0) return errno == EAGAIN || errno == EINTR;
            companion_take(self, data, (size_t)got);
        }
        return 1;
    }

    static void companion_write(companion *self) {
        while (self->end > self->start && self->output >= 0) {
            size_t size = self->end - self->start;
            if (size > PIPE_BUF) size = PIPE_BUF;
            const char *from = companion_pending + self->start;
            ssize_t sent = self->kind == S_IFSOCK
                ? send(self->output, from, size, MSG_DONTWAIT | MSG_NOSIGNAL)
                : write(self->output, from, size);
            if (sent < 0 && errno == EINTR) continue;
            if (sent < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) return;
            if (sent < 0) { close(self->output); self->output = -1; }
            else self->start += (size_t)sent;
            if (!(fcntl(self->output, F_GETFL) & O_NONBLOCK) && self->kind != S_IFSOCK) break;
        }
        if (self->output < 0) self->start = self->end = 0;
        if (self->end - self->start < PENDING_BYTES / 2) companion_report(self);
    }

    static size_t companion_read_file(const char *pid, const char *name, char *data, size_t capacity) {
        char path[64];
        snprintf(path, sizeof path, "/proc/%.20s/%s", pid, name);
        int fd = open(path, O_RDONLY | O_CLOEXEC);
        if (fd < 0) return 0;
        size_t size = 0;
        ssize_t got;
        while (size < capacity && (got = read(fd, data + size, capacity - size)) > 0) size += (size_t)got;
        close(fd);
        return size;
    }

    static int companion_is_marked(const char *pid, const char *mark) {
        static char environment[ENVIRONMENT_BYTES];
        char name[sizeof COMPANION_NAME];
        size_t size = companion_read_file(pid, "environ", environment, sizeof environment);
        if (!memmem(environment, size, mark, strlen(mark) + 1)) return 0;
        /* The companion of another worker has to kill the children of that worker. */
        size = companion_read_file(pid, "comm", name, sizeof name - 1);
        return size < sizeof name - 1 || memcmp(name, COMPANION_NAME, sizeof name - 1);
    }

    /* Kill the worker's group once the worker is gone. */
    static void companion_kill_group(companion *self) {
        if (self->leads && getppid() != self->worker) kill(-self->worker, SIGKILL);
    }

    /* Kill those that have left the group but inherited the mark: also if the worker ends in order, because it may be
       killed in the meantime. */
    static void companion_kill_marked(companion *self) {
        for (int round = 0; round < ROUNDS; round++) {
            int killed = 0;
            DIR *processes = opendir("/proc");
            if (!processes) return;
            for (struct dirent *entry; (entry = readdir(processes));) {
                int pid = atoi(entry->d_name);
                if (pid > 1 && companion_is_marked(entry->d_name, self->mark))
                    killed += kill(pid, SIGKILL) == 0;
            }
            closedir(processes);
            if (!killed) return;
        }
    }

    static int companion_step(companion *self, int timeout) {
        int pending = self->end > self->start;
        struct pollfd entries[4] = {
            {self->worker_fd, POLLIN, 0}, {self->control, POLLIN, 0},
            {self->relay, POLLIN, 0}, {pending ? self->output : -1, POLLOUT, 0},
        };
        if (poll(entries, 4, timeout) < 0) return errno == EINTR;
        if (entries[2].revents && !companion_read(self)) {
            close(self->relay);
            self->relay = -1;
        }
        if (self->end > self->start && (entries[3].revents || !pending)) companion_write(self);
        if (entries[1].revents) {
            char byte;
            if (read(self->control, &byte, 1) == 1) return 0;
            close(self->control);  /* the worker is ending */
            self->control = -1;
        }
        return !entries[0].revents && getppid() == self->worker;
    }

    static void companion_main(companion *self) {
        sigset_t all;
        sigfillset(&all);
        sigprocmask(SIG_SETMASK, &all, NULL);
        setsid();
        if (chdir("/")) {}
    #ifdef PR_SET_NAME
        prctl(PR_SET_NAME, COMPANION_NAME);
    #endif
        if (self->kind == S_IFIFO) self->output = companion_reopened(self->output);
    #ifdef SYS_pidfd_open
        self->worker_fd = (int)syscall(SYS_pidfd_open, self->worker, 0);
    #endif
        int needed[] = {self->relay, self->control, self->output, self->worker_fd};
        companion_close_all_but(needed, 4);
        while (companion_step(self, self->worker_fd < 0 ? CHECK_MS : -1)) {}
        companion_kill_group(self);
        /* Whoever reads this waits for the worker's last words, so they do not wait for the search for processes. */
        if (self->relay >= 0) companion_read(self);
        companion_write(self);
        if (self->end == self->start && *self->lost == self->reported && self->output >= 0) {
            close(self->output);
            self->output = -1;
        }
        companion_kill_marked(self);
        int64_t deadline = companion_now_ms() + FLUSH_MS;
        if (self->relay >= 0) companion_read(self);
        self->dropping = 0;
        self->worker_fd = self->control = -1;
        companion_write(self);
        companion_report(self);
        while (self->end > self->start && self->output >= 0) {
            int64_t left = deadline - companion_now_ms();
            if (left <= 0) break;
            struct pollfd entry = {self->output, POLLOUT, 0};
            if (poll(&entry, 1, (int)left) > 0) companion_write(self);
        }
        _exit(0);
    }

    /* Return 0 or an errno. If stderr is a pipe or a socket, which may fill, 1 and 2 become a pipe to the companion. */
    static int companion_start(int leads, const char *mark) {
        struct stat status;
        int relay[2] = {-1, -1}, control[2] = {-1, -1};
        int kind = fstat(2, &status) ? 0 : (int)(status.st_mode & S_IFMT);
        int relays = kind == S_IFIFO || kind == S_IFSOCK;
        void *shared = mmap(NULL, sizeof(uint64_t), PROT_READ | PROT_WRITE,
                            MAP_SHARED | MAP_ANONYMOUS, -1, 0);
        if (shared == MAP_FAILED) return errno;
        pid_t worker = getpid();
        if (pipe2(control, O_CLOEXEC) || (relays && pipe2(relay, O_CLOEXEC))) goto failed;
        companion_pid = fork();
        if (companion_pid < 0) goto failed;
        if (companion_pid == 0) {
            if (relays) fcntl(relay[0], F_SETFL, O_NONBLOCK);
            companion self = {
                .relay = relay[0], .control = control[0], .output = relays ? dup(2) : -1,
                .worker_fd = -1, .kind = kind, .leads = leads, .worker = worker, .mark = mark,
                .lost = shared,
            };
            companion_main(&self);
        }
        companion_lost = shared;
        companion_control = control[1];
        close(control[0]);
        if (relays) {
            dup2(relay[1], 1);
            dup2(relay[1], 2);
            close(relay[0]);
            close(relay[1]);
        }
        return 0;
    failed:;
        int error = errno;
        companion_pid = 0;
        munmap(shared, sizeof(uint64_t));
        for (int i = 0; i < 2; i++) { close(relay[i]); close(control[i]); }
        return error;
    }

    /* Wait until everything that was written to stderr has been forwarded, for two seconds at most. */
    static void companion_finish(void) {
        if (!companion_pid || companion_control < 0) return;
        int64_t deadline = companion_now_ms() + 2 * FLUSH_MS;
        if (write(companion_control, "", 1) != 1) return;
        while (waitpid(companion_pid, NULL, WNOHANG) == 0 && companion_now_ms() < deadline)
            poll(NULL, 0, 1);
    }

    static uint64_t companion_lines_lost(void) { return companion_lost ? *companion_lost : 0; }
    """
    int companion_start(int leads, const char *mark)
    void companion_finish() nogil
    uint64_t companion_lines_lost()
    int companion_pid
    int companion_control


def start(bint leads, bytes mark not None):
    """Start the companion, and return its pid and the descriptor that `finish` writes to. Raises OSError.

    This process must have no other thread. leads: whether the group of this process contains only its children; they
    are then killed with it. mark: NAME=VALUE that only these children have in their environment.
    """
    cdef int error = companion_start(leads, mark)
    if error:
        raise OSError(error, "the companion process cannot be started")
    return companion_pid, companion_control


def finish():
    """Wait until everything that was written to stderr has been forwarded, for at most two seconds. Call this last."""
    with nogil:
        companion_finish()


def lines_lost():
    """Return the number of lines that were dropped because stderr was not read."""
    return companion_lines_lost()
