"""A native thread that ends the process when its host is gone.

It needs neither the GIL nor the interpreter, so it also works while a handler holds the GIL forever. It detects the end
of either pipe, the death of the parent, and a SIGTERM that Python has received. From then on the process has a grace
period to end by itself, which is short once nobody reads its replies.
"""

cdef extern from *:
    """
    #ifndef _GNU_SOURCE
    #define _GNU_SOURCE
    #endif
    #include <dirent.h>
    #include <errno.h>
    #include <fcntl.h>
    #include <poll.h>
    #include <pthread.h>
    #include <signal.h>
    #include <stdio.h>
    #include <stdlib.h>
    #include <string.h>
    #include <time.h>
    #include <unistd.h>
    #ifdef __linux__
    #include <sys/syscall.h>
    #endif
    #ifndef POLLRDHUP
    #define POLLRDHUP 0
    #endif

    /* GONE_MS: the time for open calls of a host that reads no replies anymore. */
    enum { NUDGE_MS = 50, PARENT_CHECK_MS = 500, GONE_MS = 500 };

    typedef struct {
        int read_fd, write_fd, wake_fd, parent, grace_ms;
        pthread_t main_thread;
    } bridge_watch;

    static int watch_leads, watch_spared;
    static int watch_guarded[8], watch_guards, watch_null = -1, watch_in_fork;

    static int64_t watch_now_ms(void) {
        struct timespec now;
        clock_gettime(CLOCK_MONOTONIC, &now);
        return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
    }

    /* Parent and process group of a pid; 0 if it cannot be read. The name in /proc/PID/stat is in
       parentheses and may contain any characters, so the last ) counts. */
    static int watch_relatives(const char *pid, int *parent, int *group) {
        char path[64], text[512];
        snprintf(path, sizeof path, "/proc/%.20s/stat", pid);
        FILE *file = fopen(path, "r");
        if (!file) return 0;
        size_t size = fread(text, 1, sizeof text - 1, file);
        fclose(file);
        text[size] = 0;
        char *name_end = strrchr(text, ')'), state;
        return name_end && sscanf(name_end + 1, " %c %d %d", &state, parent, group) == 3
               && state != 'Z';
    }

    /* Kill the children of this process, and its process group if it is the leader. This is repeated because a process
       may fork while it is being killed. Processes that have left the group and lost their parent are not found. */
    static void bridge_kill_children(void) {
        int self = getpid();
        for (int round = 0; round < 8; round++) {
            int killed = 0;
            DIR *processes = opendir("/proc");
            if (!processes) return;
            for (struct dirent *entry; (entry = readdir(processes));) {
                int pid = atoi(entry->d_name), parent, group;
                if (pid <= 1 || pid == self || pid == watch_spared) continue;
                if (!watch_relatives(entry->d_name, &parent, &group)) continue;
                if (parent == self || (watch_leads && group == self)) {
                    killed += kill(pid, SIGKILL) == 0;
                }
            }
            closedir(processes);
            if (!killed) return;
        }
    }

    /* Make the process the leader of a group if possible, and return whether the group has no foreign processes. The
       group of a leader that was started by a shell may contain other members of a pipeline. */
    static int bridge_lead_group(void) {
        int self = getpid();
        if (getpgrp() == self) return getsid(0) == self;
        return setpgid(0, 0) == 0;
    }

    /* A signal to the child must not reach the worker through the wakeup descriptor, which both have. */
    static __thread sigset_t watch_mask;
    static void watch_before_fork(void) {
        sigset_t all;
        sigfillset(&all);
        pthread_sigmask(SIG_SETMASK, &all, &watch_mask);
    }
    static void watch_after_fork(void) { pthread_sigmask(SIG_SETMASK, &watch_mask, NULL); }

    /* Runs in the child of every fork: what the child writes to guarded descriptors is dropped, and no process waits
       for the child to close them. */
    static void watch_in_child(void) {
        watch_in_fork = 1;
        watch_leads = watch_spared = 0;
        for (int i = 0; i < watch_guards; i++) dup2(watch_null, watch_guarded[i]);
        signal(SIGTERM, SIG_DFL);
        signal(SIGHUP, SIG_DFL);
        watch_after_fork();
    }

    static int bridge_guard(int fd) {
        if (watch_null < 0) {
            watch_null = open("/dev/null", O_RDWR | O_CLOEXEC);
            if (watch_null < 0) return errno;
            int error = pthread_atfork(watch_before_fork, watch_after_fork, watch_in_child);
            if (error) return error;
        }
        if (watch_guards == sizeof watch_guarded / sizeof *watch_guarded) return ENOSPC;
        watch_guarded[watch_guards++] = fd;
        return 0;
    }

    static int watch_open_parent(int parent) {
    #ifdef SYS_pidfd_open
        return (int)syscall(SYS_pidfd_open, parent, 0);
    #else
        return -1;
    #endif
    }

    /* Python writes the number of each signal that it receives. */
    static int watch_saw_sigterm(int wake_fd) {
        unsigned char numbers[64];
        ssize_t got;
        int saw = 0;
        while ((got = read(wake_fd, numbers, sizeof numbers)) > 0)
            for (ssize_t i = 0; i < got; i++) saw |= numbers[i] == SIGTERM;
        return saw;
    }

    static void *bridge_watch_main(void *argument) {
        bridge_watch watch = *(bridge_watch *)argument;
        free(argument);
        int parent_fd = watch.parent ? watch_open_parent(watch.parent) : -1;
        struct pollfd entries[4] = {
            {watch.read_fd, POLLRDHUP, 0}, {watch.write_fd, 0, 0},
            {watch.wake_fd, POLLIN, 0}, {parent_fd, POLLIN, 0},
        };
        /* Without a pidfd the parent is checked twice a second. */
        int timeout = watch.parent && parent_fd < 0 ? PARENT_CHECK_MS : -1;
        int signalled = 0;
        while ((!watch.parent || getppid() == watch.parent) && !signalled) {
            int ready = poll(entries, 4, timeout);
            if (ready < 0 && errno != EINTR) break;
            if (ready <= 0) continue;
            if (entries[0].revents || entries[1].revents || entries[3].revents) break;
            signalled = watch_saw_sigterm(watch.wake_fd);
        }
        int64_t deadline = watch_now_ms() + watch.grace_ms, gone_at = deadline;
        while (watch_now_ms() < deadline && watch_now_ms() < gone_at) {
            if (gone_at == deadline && poll(&entries[1], 1, 0) > 0) gone_at = watch_now_ms() + GONE_MS;
            poll(NULL, 0, NUDGE_MS);
            /* A signal that arrives just before a blocking read does not interrupt it. */
            if (signalled) pthread_kill(watch.main_thread, SIGTERM);
        }
        bridge_kill_children();
        _exit(0);
        return NULL;
    }

    static char watch_cpu_text[256];
    static size_t watch_cpu_size;

    /* The signal is blocked while this runs, and ends the process after it. */
    static void watch_on_cpu_limit(int number) {
        ssize_t written = write(2, watch_cpu_text, watch_cpu_size);
        (void)written;
        signal(number, SIG_DFL);
        raise(number);
    }

    static void bridge_explain_cpu_limit(const char *text, size_t size) {
        watch_cpu_size = size < sizeof watch_cpu_text ? size : sizeof watch_cpu_text;
        memcpy(watch_cpu_text, text, watch_cpu_size);
        signal(SIGXCPU, watch_on_cpu_limit);
    }

    /* Return 0 or an errno. Signals are delivered to the other threads only. */
    static int bridge_start_watch(int read_fd, int write_fd, int wake_fd, int parent,
                                  int grace_ms) {
        bridge_watch *watch = malloc(sizeof *watch);
        if (!watch) return ENOMEM;
        *watch = (bridge_watch){read_fd, write_fd, wake_fd, parent, grace_ms, pthread_self()};
        sigset_t all, before;
        sigfillset(&all);
        pthread_sigmask(SIG_SETMASK, &all, &before);
        pthread_t thread;
        int error = pthread_create(&thread, NULL, bridge_watch_main, watch);
        pthread_sigmask(SIG_SETMASK, &before, NULL);
        if (!error) pthread_detach(thread); else free(watch);
        return error;
    }
    """
    int watch_leads
    int watch_spared
    int watch_in_fork
    int bridge_lead_group()
    int bridge_guard(int fd)
    int bridge_start_watch(int read_fd, int write_fd, int wake_fd, int parent, int grace_ms)
    void bridge_explain_cpu_limit(const char *text, size_t size)
    void bridge_kill_children() nogil


cpdef bint in_fork() noexcept:
    """Return whether this process is the child of a fork of the process that called `guard`."""
    return watch_in_fork


def lead_group():
    """Make this process the leader of a process group if possible, and return whether the whole group may be killed
    by `kill_children`."""
    global watch_leads
    watch_leads = bridge_lead_group()
    return bool(watch_leads)


def spare(int pid):
    """Exclude the process `pid` from `kill_children`."""
    global watch_spared
    watch_spared = pid


def guard(int fd):
    """Replace the descriptor with /dev/null in every child that is forked from now on. At most 8 descriptors can be
    guarded. Raises OSError."""
    cdef int error = bridge_guard(fd)
    if error:
        raise OSError(error, "the descriptor cannot be guarded")


def start(int read_fd, int write_fd, int wake_fd, int parent, int grace_ms):
    """Start the watching thread. Call this on the main thread. Raises OSError.

    parent: the parent's pid at the start of the process; 0: its end does not matter. wake_fd: not blocking; the numbers of received signals are
    read from it. `grace_ms` after the host is gone, or half a second after it has stopped to read replies too, the process and its
    children are ended, with exit status 0.
    """
    cdef int error = bridge_start_watch(read_fd, write_fd, wake_fd, parent, grace_ms)
    if error:
        raise OSError(error, "the watching thread cannot be started")


def kill_children():
    """Kill all children, and the whole process group if this process leads it."""
    with nogil:
        bridge_kill_children()


def explain_cpu_limit(bytes text not None):
    """Write `text`, at most 256 bytes, to stderr before SIGXCPU ends the process. This needs no GIL."""
    bridge_explain_cpu_limit(text, len(text))
