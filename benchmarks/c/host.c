/* The host of the benchmarks: starts a worker on two pipes, calls it, prints one JSON object.

   host KIND [-n COUNT] [-w WINDOW] [-g GAP] [-p HOST,WORKER] [-e EXPECT] [-s SETUP] COMMAND ARG... <REQUEST

   KIND  calls: COUNT round trips, one every GAP µs (0: back to back).
         pipelined: COUNT requests, WINDOW of them in flight.
         start: from fork to the first reply. exit: from fork to the end of COMMAND.
   -p    the cores that host and worker are pinned to. -e: bytes that each reply contains exactly once.
   -s    a file of whole frames, sent one by one before the measurement; each must have one reply.
   REQUEST is one payload; the frame around it is made here.

   cpu_us is the CPU time of all threads of the worker per request, as counted by the scheduler
   (/proc/PID/task/TID/schedstat), without start-up and warm-up. */
#define _GNU_SOURCE
#include <dirent.h>
#include <fcntl.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum {
    HEADER = 4,                /* bytes of a frame's length, big-endian */
    PIPE_SIZE = 1 << 20,       /* bytes, asked for on both pipes */
    ROOM = 4 << 20,            /* bytes: limit of a request, and of a reply */
    IN_FLIGHT_LIMIT = 1 << 19, /* bytes: requests in flight must fit into a pipe, or both sides block */
    SETTLE = 5000000,          /* ns until the worker is back in read(2) and its CPU time is counted */
    PATIENCE = 120,            /* s until a run is killed because its worker hangs */
};

static struct { long count, window, gap; int host_core, worker_core; const char *expect, *setup; }
    options = {1, 1, 0, -1, -1, "", NULL};
static struct { pid_t pid; int in, out; } worker; /* in: to it, out: from it */
static unsigned char *request, *replies;          /* request: `window` frames, one after another */
static size_t frame, have;                        /* bytes of one request; of unprocessed replies */

static void die(const char *why) {
    fprintf(stderr, "host: %s\n", why);
    exit(1);
}

static int64_t now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static void sleep_until(int64_t when) {
    struct timespec t = {when / 1000000000, when % 1000000000};
    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL)) {}
}

static void pin(int core) {
    cpu_set_t set;
    if (core < 0) return;
    CPU_ZERO(&set);
    CPU_SET(core, &set);
    if (sched_setaffinity(0, sizeof set, &set)) die("cannot pin to that core");
}

/* --- the worker: its process, its pipes --- */

static void start_worker(char **command) {
    int in[2], out[2];
    if (pipe2(in, O_CLOEXEC) || pipe2(out, O_CLOEXEC)) die("no pipe");
    fcntl(in[1], F_SETPIPE_SZ, PIPE_SIZE);
    fcntl(out[0], F_SETPIPE_SZ, PIPE_SIZE);
    worker.pid = fork();
    if (worker.pid < 0) die("cannot fork");
    if (worker.pid == 0) {
        pin(options.worker_core);
        dup2(in[0], 0);
        dup2(out[1], 1);
        execvp(command[0], command);
        die("cannot start the worker");
    }
    close(in[0]);
    close(out[1]);
    worker.in = in[1];
    worker.out = out[0];
}

static void end_worker(void) {
    int status;
    close(worker.in);
    if (waitpid(worker.pid, &status, 0) < 0 || status) die("the worker did not exit with 0");
    close(worker.out);
}

static double worker_cpu(void) { /* ns */
    char path[300], text[100];
    double sum = 0;
    struct dirent *task;
    sleep_until(now() + SETTLE);
    snprintf(path, sizeof path, "/proc/%d/task", worker.pid);
    DIR *tasks = opendir(path);
    while (tasks && (task = readdir(tasks))) {
        snprintf(path, sizeof path, "/proc/%d/task/%s/schedstat", worker.pid, task->d_name);
        FILE *file = task->d_name[0] == '.' ? NULL : fopen(path, "r");
        if (file && fgets(text, sizeof text, file)) sum += strtod(text, NULL);
        if (file) fclose(file);
    }
    if (tasks) closedir(tasks);
    return sum;
}

/* --- frames --- */

static void send_requests(long count) {
    size_t size = count * frame, sent = 0;
    while (sent < size) {
        ssize_t n = write(worker.in, request + sent, size - sent);
        if (n <= 0) die("the worker has stopped reading");
        sent += n;
    }
}

static size_t frame_size(const unsigned char *p) {
    return HEADER + ((size_t)p[0] << 24 | (size_t)p[1] << 16 | (size_t)p[2] << 8 | p[3]);
}

static void receive(void) {
    ssize_t got = read(worker.out, replies + have, ROOM - have);
    if (got <= 0) die("the worker ended, or its reply is too long");
    have += got;
}

static void check(const unsigned char *reply, size_t size) {
    size_t length = strlen(options.expect);
    const unsigned char *found = memmem(reply, size, options.expect, length);
    if (size <= HEADER || !found) die("not the reply that was expected");
    found += length;
    if (length && memmem(found, reply + size - found, options.expect, length))
        die("two replies in one");
}

/* Checks and drops the whole replies that have arrived; returns how many there were. */
static long take_replies(void) {
    size_t start = 0, size;
    long count = 0;
    while (have - start >= HEADER && (size = frame_size(replies + start)) <= have - start) {
        check(replies + start, size);
        start += size;
        count++;
    }
    memmove(replies, replies + start, have -= start);
    return count;
}

static int64_t call(void) { /* ns */
    int64_t started = now();
    send_requests(1);
    do receive();
    while (have < HEADER || have < frame_size(replies));
    int64_t took = now() - started;
    if (take_replies() != 1) die("two replies to one request");
    return took;
}

static void pipeline(long count) {
    long unsent = count, room = options.window;
    while (count > 0) {
        long batch = room < unsent ? room : unsent;
        if (batch) send_requests(batch);
        unsent -= batch;
        receive();
        room = take_replies();
        count -= room;
    }
}

/* Sends the frames of the setup file, and waits for the reply to each. */
static void set_up(void) {
    unsigned char *measured = request;
    size_t measured_frame = frame;
    const char *expect = options.expect;
    FILE *file = fopen(options.setup, "rb");
    if (!file) die("the setup file cannot be read");
    request = malloc(ROOM);
    options.expect = "";
    while (fread(request, 1, HEADER, file) == HEADER) {
        frame = frame_size(request);
        if (frame > ROOM || fread(request + HEADER, 1, frame - HEADER, file) != frame - HEADER)
            die("the setup file does not consist of frames");
        call();
    }
    fclose(file);
    free(request);
    request = measured;
    frame = measured_frame;
    options.expect = expect;
}

/* --- what is measured --- */

static int by_value(const void *a, const void *b) {
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

static void measure_calls(void) {
    long count = options.count;
    int64_t *took = malloc(count * sizeof *took), next;
    for (long i = 0; i < count / 5 + 5; i++) call();
    double cpu = worker_cpu();
    next = now();
    for (long i = 0; i < count; i++) {
        if (options.gap) sleep_until(next += options.gap * 1000);
        took[i] = call();
    }
    cpu = worker_cpu() - cpu;
    qsort(took, count, sizeof *took, by_value);
    double p50 = took[count / 2];
    printf("{\"p50_us\": %.3f, \"p90_us\": %.3f, \"p99_us\": %.3f, ", p50 / 1e3,
           took[count * 90 / 100] / 1e3, took[count * 99 / 100] / 1e3);
    printf("\"mb_per_s\": %.1f, \"cpu_us\": %.3f}\n", (frame - HEADER) / p50 * 1e3, cpu / count / 1e3);
}

static void measure_pipeline(void) {
    pipeline(options.count / 5);
    double cpu = worker_cpu();
    int64_t started = now();
    pipeline(options.count);
    double seconds = (now() - started) / 1e9;
    cpu = worker_cpu() - cpu;
    printf("{\"cpu_us\": %.3f, \"per_s\": %.0f}\n", cpu / options.count / 1e3,
           options.count / seconds);
}

static void read_request(void) {
    size_t size;
    request = calloc(1, ROOM);
    replies = calloc(1, ROOM);
    size = fread(request + HEADER, 1, ROOM - HEADER, stdin);
    frame = HEADER + size;
    for (int i = 0; i < HEADER; i++) request[i] = size >> 8 * (HEADER - 1 - i);
    if (options.window > 1 && options.window * frame > IN_FLIGHT_LIMIT) die("window too large");
    for (long i = 1; i < options.window; i++) memcpy(request + i * frame, request, frame);
}

int main(int count, char **arguments) {
    const char *kind = count > 1 ? arguments[1] : "";
    int64_t started;
    int option;
    optind = 2;
    while ((option = getopt(count, arguments, "+n:w:g:p:e:s:")) != -1) {
        if (option == 'n') options.count = atol(optarg);
        else if (option == 'w') options.window = atol(optarg);
        else if (option == 'g') options.gap = atol(optarg);
        else if (option == 'e') options.expect = optarg;
        else if (option == 's') options.setup = optarg;
        else if (option != 'p' ||
                 sscanf(optarg, "%d,%d", &options.host_core, &options.worker_core) != 2)
            die("see the head of host.c");
    }
    if (optind >= count) die("no command");
    alarm(PATIENCE);
    read_request();
    pin(options.host_core);
    started = now();
    start_worker(arguments + optind);
    if (options.setup) set_up();
    if (!strcmp(kind, "calls")) measure_calls();
    else if (!strcmp(kind, "pipelined")) measure_pipeline();
    else if (!strcmp(kind, "start")) call();
    else if (strcmp(kind, "exit")) die("kind: calls, pipelined, start or exit");
    if (!strcmp(kind, "start")) printf("{\"ms\": %.2f}\n", (now() - started) / 1e6);
    end_worker();
    if (!strcmp(kind, "exit")) printf("{\"ms\": %.2f}\n", (now() - started) / 1e6);
}
