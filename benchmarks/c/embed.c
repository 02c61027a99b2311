/* Measures a ping in this process beside a bare call of a Python function, on one thread and on
   eight, and a request of 64 MiB with and without a copy. Prints JSON: the medians of the rounds in ns.
   Arguments: the Python environment, rounds. */

#define _GNU_SOURCE /* memmem */
#include <Python.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "bridge.h"

enum { PINGS = 20000, THREADS = 8, BIG = 64 << 20 };

static bridge *handle;
static const char *ping = "{\"id\": 1, \"command\": \"ping\", \"args\": {}}";

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec * 1e9 + (double)time.tv_nsec;
}

static void need(int is_so, const char *what) {
    if (is_so) return;
    fprintf(stderr, "%s: %s\n", what, bridge_error());
    exit(1);
}

static void pings(int count) {
    bridge_request request = bridge_text(ping);
    bridge_bytes reply;
    int i;
    for (i = 0; i < count; i++) {
        need(!bridge_call(handle, request, -1, &reply), "ping");
        bridge_free(&reply);
    }
}

static double per_ping(void) {
    double start = now();
    pings(PINGS);
    return (now() - start) / PINGS;
}

static void *ping_thread(void *unused) {
    (void)unused;
    pings(PINGS / THREADS);
    return NULL;
}

static double per_ping_of_threads(void) {
    pthread_t threads[THREADS];
    double start = now();
    int i;
    for (i = 0; i < THREADS; i++) pthread_create(&threads[i], NULL, ping_thread, NULL);
    for (i = 0; i < THREADS; i++) pthread_join(threads[i], NULL);
    return (now() - start) / PINGS;
}

/* A Python function with one argument that returns it. gil: take and give back the GIL around each call, as a host's
   threads have to. */
static double per_bare_call(int gil) {
    PyGILState_STATE state = PyGILState_Ensure();
    PyObject *globals = PyDict_New(), *function, *argument, *arguments, *result;
    PyThreadState *mine;
    double start, took;
    int i;
    Py_XDECREF(PyRun_String("def function(value):\n    return value\n", Py_file_input, globals,
                            globals));
    function = PyDict_GetItemString(globals, "function");
    argument = PyLong_FromLong(1);
    arguments = PyTuple_Pack(1, argument);
    start = now();
    for (i = 0; i < PINGS; i++) {
        result = PyObject_Call(function, arguments, NULL);
        Py_XDECREF(result);
        if (gil) {
            mine = PyEval_SaveThread();
            PyEval_RestoreThread(mine);
        }
    }
    took = (now() - start) / PINGS;
    Py_DECREF(arguments);
    Py_DECREF(argument);
    Py_DECREF(globals);
    PyGILState_Release(state);
    return took;
}

static void keep(void *context) { (void)context; }

/* A multipart echo would send its bytes back; `ping` reads none of its args. */
static double per_big_request(int copy) {
    static char *data;
    bridge_request request = {NULL, BIG, copy ? NULL : keep, NULL};
    bridge_bytes reply;
    double start;
    int length;
    if (data == NULL) {
        data = malloc(BIG);
        memset(data, 'x', BIG);
        /* C1 01 00 00, one buffer, the envelope, the buffer. */
        length = (int)strlen(ping);
        memcpy(data, "\xc1\x01\0\0\0\0\0\1", 8);
        data[8] = data[9] = data[10] = 0;
        data[11] = (char)length;
        length = BIG - 64;
        data[12] = (char)(length >> 24);
        data[13] = (char)(length >> 16);
        data[14] = (char)(length >> 8);
        data[15] = (char)length;
        memcpy(data + 16, ping, strlen(ping));
    }
    request.data = data;
    start = now();
    need(!bridge_call(handle, request, -1, &reply), "a big request");
    need(memmem(reply.data, reply.size, "\"ok\"", 4) != NULL, "a big request failed");
    bridge_free(&reply);
    return now() - start;
}

static int by_size(const void *a, const void *b) {
    double left = *(const double *)a, right = *(const double *)b;
    return (left > right) - (left < right);
}

typedef struct {
    const char *name;
    double ns[1000];
} figure;

int main(int count, char **arguments) {
    static figure figures[] = {{"bare_call", {0}},     {"bare_call_with_gil", {0}},
                               {"ping", {0}},          {"ping_8_threads", {0}},
                               {"64_MiB_copied", {0}}, {"64_MiB", {0}}};
    int rounds = count > 2 ? atoi(arguments[2]) : 20, round;
    size_t i, figures_count = sizeof figures / sizeof *figures;
    handle = bridge_open(count > 1 ? arguments[1] : NULL, "{\"adapter\": \"echo\"}");
    need(handle != NULL, "open");
    if (rounds > 1000) rounds = 1000;
    for (round = 0; round < rounds; round++) {
        figures[0].ns[round] = per_bare_call(0);
        figures[1].ns[round] = per_bare_call(1);
        figures[2].ns[round] = per_ping();
        figures[3].ns[round] = per_ping_of_threads();
        figures[4].ns[round] = per_big_request(1);
        figures[5].ns[round] = per_big_request(0);
    }
    printf("{");
    for (i = 0; i < figures_count; i++) {
        qsort(figures[i].ns, (size_t)rounds, sizeof(double), by_size);
        printf("%s\"%s\": %.0f", i ? ", " : "", figures[i].name, figures[i].ns[rounds / 2]);
    }
    printf("}\n");
    need(!bridge_close(handle), "close");
    return 0;
}
