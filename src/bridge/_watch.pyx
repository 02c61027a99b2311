"""A native thread that ends the process when its host is gone.

It needs neither the GIL nor the interpreter, so it also works while a handler holds the GIL
forever. It sees the end of either pipe, the death of the parent, and a wake-up byte (a signal that
Python has taken); from then on the process has a grace period to end by itself.
"""

cdef extern from *:
    """
    #ifndef _GNU_SOURCE
    #define _GNU_SOURCE
    #endif
    #include <dirent.h>
    #include <errno.h>
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

    enum { NUDGE_MS = 50, PARENT_CHECK_MS = 500 };

    typedef struct {
        int read_fd, write_fd, wake_fd, parent, grace_ms;
        pthread_t main_thread;
    } bridge_watch;

    static int64_t watch_now_ms(void) {
        struct timespec now;
        clock_gettime(CLOCK_MONOTONIC, &now);
        return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
    }

    /* Parent and process group of a pid; 0 if it cannot be read. The name in /proc/PID/stat is in
       parentheses and may hold anything, so the last one counts. */
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

    /* SIGKILL to our children, and to our process group if it is our own. Repeated, because what is
       being killed may fork. Processes that left the group and lost their parent are not found. */
    static void bridge_kill_children(void) {
        /* A leader of its own session: in a shell's pipeline the group has other members. */
        int self = getpid(), leads = getpgrp() == self && getsid(0) == self;
        for (int round = 0; round < 8; round++) {
            int killed = 0;
            DIR *processes = opendir("/proc");
            if (!processes) return;
            for (struct dirent *entry; (entry = readdir(processes));) {
                int pid = atoi(entry->d_name), parent, group;
                if (pid <= 1 || pid == self) continue;
                if (!watch_relatives(entry->d_name, &parent, &group)) continue;
                if (parent == self || (leads && group == self)) {
                    killed += kill(pid, SIGKILL) == 0;
                }
            }
            closedir(processes);
            if (!killed) return;
        }
    }

    static int watch_open_parent(int parent) {
    #ifdef SYS_pidfd_open
        return (int)syscall(SYS_pidfd_open, parent, 0);
    #else
        return -1;
    #endif
    }

    static void *bridge_watch_main(void *argument) {
        bridge_watch watch = *(bridge_watch *)argument;
        free(argument);
        int parent_fd = watch_open_parent(watch.parent);
        struct pollfd entries[4] = {
            {watch.read_fd, POLLRDHUP, 0}, {watch.write_fd, 0, 0},
            {watch.wake_fd, POLLIN, 0}, {parent_fd, POLLIN, 0},
        };
        /* Without a pidfd the parent is looked at twice a second. */
        int timeout = parent_fd < 0 ? PARENT_CHECK_MS : -1;
        while (getppid() == watch.parent) {
            int ready = poll(entries, 4, timeout);
            if (ready > 0 || (ready < 0 && errno != EINTR)) break;
        }
        int signalled = entries[2].revents != 0;
        int64_t deadline = watch_now_ms() + watch.grace_ms;
        while (watch_now_ms() < deadline) {
            poll(NULL, 0, NUDGE_MS);
            /* A signal that came just before a blocking read was lost on it. */
            if (signalled) pthread_kill(watch.main_thread, SIGTERM);
        }
        bridge_kill_children();
        _exit(0);
        return NULL;
    }

    /* 0 or an errno. All signals stay with the other threads. */
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
    int bridge_start_watch(int read_fd, int write_fd, int wake_fd, int parent, int grace_ms)
    void bridge_kill_children() nogil


def start(int read_fd, int write_fd, int wake_fd, int parent, int grace_ms):
    """Watch from now on, called from the main thread. Raises OSError.

    parent: the parent's pid at the start of the process. wake_fd: readable once a signal came.
    After `grace_ms` the process and its children are gone, with exit status 0.
    """
    cdef int error = bridge_start_watch(read_fd, write_fd, wake_fd, parent, grace_ms)
    if error:
        raise OSError(error, "the watching thread did not start")


def kill_children():
    """SIGKILL to all children, and to the whole process group if this process leads a session."""
    with nogil:
        bridge_kill_children()
