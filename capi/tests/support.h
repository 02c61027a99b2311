/* What the tests share. A test runs in its own process, because Python can start
   only once in a process, and exits with a message where a CHECK fails. */

#ifndef SUPPORT_H
#define SUPPORT_H

#define _GNU_SOURCE
#include <Python.h>

#include "bridge.h"

#include <dirent.h>
#include <errno.h>
#include <locale.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define TEST(name) void name(void);
#include "table.h"
#undef TEST

#define CHECK(condition)                                                                          \
    do {                                                                                          \
        if (!(condition)) {                                                                       \
            fprintf(stderr, "%s:%d: failed: %s (last error %d: %s)\n", __FILE__, __LINE__,        \
                    #condition, bridge_error_code(), bridge_error());                             \
            _exit(1);                                                                             \
        }                                                                                         \
    } while (0)

enum { FOREVER = -1, SECONDS_TO_WAIT = 30 };

/* Open a handle, or fail the test. */
bridge *opened(const char *options);
bridge *with_echo(void);
/* `more`: further options, as ", \"key\": value". */
bridge *with_commands(const char *more);

int holds(const bridge_bytes *bytes, const char *text);
/* Return whether the reply to `request` contains `text`. */
int says(bridge *handle, const char *request, const char *text);
int pings(bridge *handle);

/* The messages of a call, counted, and the last of them. */
typedef struct {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    int replies, events, host_calls, empty;
    char last[4096];
    bridge *handle;
} box;

#define BOX {PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, 0, 0, 0, 0, "", NULL}

/* A callback that counts messages in a box. */
void collect(void *context, bridge_kind kind, bridge_bytes *bytes);
/* Wait until a count of the box is at least `at_least`. */
void await(box *box, const int *count, int at_least);

/* A callback that collects the message and then waits for `gate`. */
void block(void *context, bridge_kind kind, bridge_bytes *bytes);
extern pthread_mutex_t gate;

/* A `release` of requests, with &releases as its context. */
void count_release(void *context);
extern int releases;

/* Thread functions that send a command: `log`, and `stubborn_inline`, which blocks until `let_go`. */
void *log_a_line(void *handle);
void *call_stubborn_inline(void *handle);

/* The number of threads of this process. */
int threads(void);
/* Return whether `count` drops to `wanted` within 10 s. */
int drops_to(int (*count)(void), int wanted);

#endif
