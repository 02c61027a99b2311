/* Tests the library through its header: `test_bridge NAME` runs one test. Each needs its own process,
   because Python can start only once in a process. */

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

#define CHECK(condition)                                                                          \
    do {                                                                                          \
        if (!(condition)) {                                                                       \
            fprintf(stderr, "%s:%d: failed: %s (last error %d: %s)\n", __FILE__, __LINE__,        \
                    #condition, bridge_error_code(), bridge_error());                             \
            _exit(1);                                                                             \
        }                                                                                         \
    } while (0)

enum { FOREVER = -1, SECONDS_TO_WAIT = 30 };

static bridge *opened(const char *options) {
    bridge *handle = bridge_open(NULL, options);
    CHECK(handle != NULL);
    return handle;
}

static bridge *with_echo(void) { return opened("{\"adapter\": \"echo\"}"); }

static bridge *with_commands(const char *more) {
    char options[512];
    snprintf(options, sizeof options, "{\"adapter\": \"commands:adapter\", \"path\": [\"%s\"]%s}",
             TESTS, more);
    return opened(options);
}

static int holds(const bridge_bytes *bytes, const char *text) {
    return memmem(bytes->data, bytes->size, text, strlen(text)) != NULL;
}

/* Return whether the reply to `request` contains `text`. */
static int says(bridge *handle, const char *request, const char *text) {
    bridge_bytes reply;
    int is_so;
    CHECK(bridge_call(handle, bridge_text(request), FOREVER, &reply) == BRIDGE_OK);
    is_so = holds(&reply, text);
    if (!is_so) fprintf(stderr, "%.*s\n", (int)reply.size, (const char *)reply.data);
    bridge_free(&reply);
    return is_so;
}

static int pings(bridge *handle) {
    return says(handle, "{\"id\": 1, \"command\": \"ping\"}", "\"status\":\"ok\"");
}

/* The messages of a call, counted, and the last of them. */
typedef struct {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    int replies, events, host_calls, empty;
    char last[4096];
    bridge *handle;
} box;

#define BOX {PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, 0, 0, 0, 0, "", NULL}

static void collect(void *context, bridge_kind kind, bridge_bytes *bytes) {
    box *box = context;
    pthread_mutex_lock(&box->lock);
    CHECK(kind == BRIDGE_REPLY || kind == BRIDGE_EVENT || kind == BRIDGE_HOST_CALL);
    box->events += kind == BRIDGE_EVENT;
    box->host_calls += kind == BRIDGE_HOST_CALL;
    box->empty += bytes->size == 0;
    if (kind == BRIDGE_REPLY) box->replies++;
    if (bytes->size) {
        snprintf(box->last, sizeof box->last, "%.*s", (int)bytes->size, (const char *)bytes->data);
    }
    pthread_cond_broadcast(&box->changed);
    pthread_mutex_unlock(&box->lock);
}

static void await(box *box, const int *count, int at_least) {
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += SECONDS_TO_WAIT;
    pthread_mutex_lock(&box->lock);
    while (*count < at_least) {
        CHECK(pthread_cond_timedwait(&box->changed, &box->lock, &until) == 0);
    }
    pthread_mutex_unlock(&box->lock);
}

static int threads(void) {
    DIR *tasks = opendir("/proc/self/task");
    int count = -2;
    while (readdir(tasks)) count++;
    closedir(tasks);
    return count;
}

/* The system removes a joined thread from its list with a short delay. */
static int falls_to(int (*count)(void), int wanted) {
    int tries;
    for (tries = 0; count() > wanted && tries < 1000; tries++) usleep(10000);
    return count() == wanted;
}

static void open_ping_close(void) {
    bridge *handle = with_echo();
    CHECK(strlen(bridge_version()) >= 5);
    CHECK(pings(handle));
    CHECK(says(handle, "{\"id\": 2, \"command\": \"sleep\"}", "\"slept\":0.0"));
    CHECK(says(handle, "{\"id\": 3, \"command\": \"pong\"}", "\"unknown_command\""));
    CHECK(says(handle, "{\"id\": 4, \"command\": \"get_stats\"}", "\"command_count\":2"));
    CHECK(bridge_close(handle) == BRIDGE_OK);
}

/* JSON, MessagePack, ETF, and invalid payloads. The vectors cover more. */
static void formats(void) {
    static const char msgpack[] = "\x82\xa2id\x07\xa7" "command\xa4" "ping";
    static const char etf[] = "\x83t\0\0\0\2m\0\0\0\2idm\0\0\0\1am\0\0\0\7commandm\0\0\0\4ping";
    bridge *handle = with_echo();
    bridge_request request = {msgpack, sizeof msgpack - 1, NULL, NULL};
    bridge_bytes reply;
    CHECK(bridge_call(handle, request, FOREVER, &reply) == BRIDGE_OK);
    CHECK(!memcmp(reply.data, "\x84\xa2id\x07\xa7success\xc3", 14));
    bridge_free(&reply);
    request.data = etf;
    request.size = sizeof etf - 1;
    CHECK(bridge_call(handle, request, FOREVER, &reply) == BRIDGE_OK);
    CHECK(!memcmp(reply.data, "\x83t\0\0\0\4m\0\0\0\2idm\0\0\0\1a", 19));
    bridge_free(&reply);
    CHECK(says(handle, "nonsense", "\"invalid_frame\""));
    CHECK(says(handle, "{\"id\": 5}", "\"invalid_request\""));
    CHECK(bridge_close(handle) == BRIDGE_OK);
}

static int releases;

static void count_release(void *context) {
    CHECK(context == &releases);
    releases++;
}

/* NULL for every argument, an empty payload, and one that is far too long. */
static void bad_arguments(void) {
    bridge *handle = with_echo();
    bridge_request ping = bridge_text("{\"id\": 1, \"command\": \"ping\"}");
    bridge_request request = {NULL, 1, count_release, &releases};
    bridge_bytes reply;
    uint64_t number = 7;
    box box = BOX;
    CHECK(bridge_call(NULL, ping, FOREVER, &reply) == BRIDGE_INVALID);
    CHECK(bridge_call(handle, ping, FOREVER, NULL) == BRIDGE_INVALID);
    CHECK(bridge_call(NULL, ping, FOREVER, NULL) == BRIDGE_INVALID);
    CHECK(bridge_call(handle, request, FOREVER, &reply) == BRIDGE_INVALID && releases == 1);
    CHECK(bridge_submit(handle, request, collect, &box, NULL) == BRIDGE_INVALID && releases == 2);
    CHECK(bridge_submit(handle, ping, NULL, NULL, NULL) == BRIDGE_INVALID);
    CHECK(bridge_submit(NULL, ping, collect, &box, NULL) == BRIDGE_INVALID);
    CHECK(bridge_cancel(NULL, 1) == BRIDGE_INVALID);
    CHECK(bridge_listen(NULL, collect, &box) == BRIDGE_INVALID);
    CHECK(bridge_close(NULL) == BRIDGE_INVALID);
    CHECK(strstr(bridge_error(), "NULL") != NULL);
    CHECK(bridge_listen(handle, NULL, NULL) == BRIDGE_OK);
    CHECK(bridge_cancel(handle, 12345) == BRIDGE_OK);
    bridge_free(NULL);
    memset(&reply, 0, sizeof reply);
    bridge_free(&reply);

    CHECK(bridge_call(handle, bridge_text(NULL), FOREVER, &reply) == BRIDGE_OK); /* a heartbeat */
    CHECK(reply.size == 0);
    bridge_free(&reply);
    CHECK(bridge_submit(handle, bridge_text(""), collect, &box, &number) == BRIDGE_OK);
    CHECK(box.replies == 1 && box.empty == 1 && number == 0);
    request.data = "{";
    request.size = (size_t)1 << 32;
    CHECK(bridge_call(handle, request, FOREVER, &reply) == BRIDGE_OK && releases == 3);
    CHECK(holds(&reply, "\"frame_too_large\"") && holds(&reply, "4294967296"));
    bridge_free(&reply);
    bridge_free(&reply);
    request.size = SIZE_MAX;
    CHECK(bridge_submit(handle, request, collect, &box, NULL) == BRIDGE_OK && releases == 4);
    CHECK(strstr(box.last, "frame_too_large") && box.replies == 2);
    CHECK(pings(handle));
    CHECK(bridge_close(handle) == BRIDGE_OK);
}

static void bad_options(void) {
    static const char *refused[][2] = {
        {"{\"adapter\": \"no_such_module:adapter\"}", "no_such_module"},
        {"{\"adapter\": \"json:loads\"}", "not a bridge.Adapter"},
        {"{\"threads\": 0}", "$.threads"},
        {"{\"mode\": \"x\"}", "$.mode"},
        {"{\"thread\": 1}", "unknown field `thread`"},
        {"{\"fds\": [0, 1]}", "unknown field `fds`"},
        {"{\"store\": \"postgres:x\"}", "$.store"},
        {"[]", "Expected `object`"},
        {"{", "truncated"},
    };
    bridge *handle;
    size_t i;
    for (i = 0; i < sizeof refused / sizeof *refused; i++) {
        CHECK(bridge_open(NULL, refused[i][0]) == NULL);
        CHECK(bridge_error_code() == BRIDGE_INVALID);
        CHECK(strstr(bridge_error(), refused[i][1]) != NULL);
    }
    CHECK(bridge_open(NULL, "{\"adapter\": \"echo\", \"store\": \"sqlite:/no/where.db\"}") == NULL);
    CHECK(bridge_error_code() == BRIDGE_FAILED);
    handle = with_echo();
    CHECK(bridge_open("/some/other/python", NULL) == NULL);
    CHECK(bridge_error_code() == BRIDGE_INVALID && strstr(bridge_error(), "already"));
    CHECK(pings(handle));
    CHECK(bridge_close(handle) == BRIDGE_OK);
}

static void after_close(void) {
    bridge_request request = {"{}", 2, count_release, &releases};
    bridge *handle = with_echo(), *other = with_echo();
    bridge_bytes reply, kept;
    box box = BOX;
    CHECK(bridge_call(handle, bridge_text("{\"id\": 1, \"command\": \"ping\"}"), -1, &kept) == 0);
    CHECK(bridge_close(handle) == BRIDGE_OK);
    CHECK(bridge_call(handle, request, FOREVER, &reply) == BRIDGE_CLOSED && releases == 1);
    CHECK(reply.size == 0);
    CHECK(bridge_submit(handle, request, collect, &box, NULL) == BRIDGE_CLOSED && releases == 2);
    CHECK(box.replies == 0);
    CHECK(bridge_cancel(handle, 1) == BRIDGE_CLOSED);
    CHECK(bridge_listen(handle, collect, &box) == BRIDGE_CLOSED);
    CHECK(bridge_close(handle) == BRIDGE_CLOSED);
    CHECK(holds(&kept, "\"ok\""));
    bridge_free(&kept);
    CHECK(pings(other)); /* at the same time */
    CHECK(bridge_close(other) == BRIDGE_OK);
    handle = with_echo(); /* again */
    CHECK(pings(handle));
    CHECK(says(handle, "{\"id\": 1, \"command\": \"shutdown\"}", "shutting_down"));
    CHECK(bridge_call(handle, bridge_text("{}"), FOREVER, &reply) == BRIDGE_CLOSED);
    CHECK(bridge_listen(handle, collect, &box) == BRIDGE_CLOSED);
    CHECK(bridge_close(handle) == BRIDGE_OK);
}

static void *call_until_closed(void *context) {
    box *box = context;
    bridge_bytes reply;
    int id = 0, code = 0;
    char request[80];
    while (!code) {
        snprintf(request, sizeof request, "{\"id\": \"%lx-%d\", \"command\": \"wait\"}",
                 (unsigned long)pthread_self(), id++);
        code = bridge_call(box->handle, bridge_text(request), FOREVER, &reply);
        if (!code) {
            collect(box, BRIDGE_REPLY, &reply);
            CHECK(holds(&reply, "\"cancelled\""));
            bridge_free(&reply);
        }
    }
    CHECK(code == BRIDGE_CLOSED);
    return NULL;
}

/* 100 submitted requests and 8 threads that wait; each request gets exactly one reply. */
static void close_with_calls_in_flight(void) {
    bridge *handle = with_commands(", \"threads\": 16");
    int before = threads(), i;
    pthread_t callers[8];
    char request[80];
    box box = BOX, calls = BOX;
    calls.handle = handle;
    for (i = 0; i < 8; i++) pthread_create(&callers[i], NULL, call_until_closed, &calls);
    for (i = 0; i < 100; i++) {
        snprintf(request, sizeof request, "{\"id\": %d, \"command\": \"wait\"}", i);
        CHECK(bridge_submit(handle, bridge_text(request), collect, &box, NULL) == BRIDGE_OK);
    }
    CHECK(bridge_close(handle) == BRIDGE_OK);
    for (i = 0; i < 8; i++) pthread_join(callers[i], NULL);
    CHECK(box.replies == 100 && strstr(box.last, "\"cancelled\""));
    CHECK(falls_to(threads, before));
}

static pthread_mutex_t gate = PTHREAD_MUTEX_INITIALIZER;

static void *log_a_line(void *handle) {
    CHECK(says(handle, "{\"id\": \"log\", \"command\": \"log\"}", "\"success\":true"));
    return NULL;
}

static void block(void *context, bridge_kind kind, bridge_bytes *bytes) {
    collect(context, kind, bytes);
    pthread_mutex_lock(&gate);
    pthread_mutex_unlock(&gate);
}

/* A handler and a callback that do not return delay a close by its grace period and no more. */
static void close_with_what_does_not_come_back(void) {
    bridge *handle = with_commands(", \"grace\": 0.1"), *other = with_commands("");
    int before = threads();
    box stubborn = BOX, blocked = BOX;
    CHECK(bridge_submit(handle, bridge_text("{\"id\": 1, \"command\": \"stubborn\"}"), collect,
                        &stubborn, NULL) == BRIDGE_OK);
    pthread_mutex_lock(&gate);
    CHECK(bridge_submit(handle,
                        bridge_text("{\"id\": 2, \"command\": \"count\", \"stream\": true,"
                                    " \"args\": {\"n\": 3}}"),
                        block, &blocked, NULL) == BRIDGE_OK);
    await(&blocked, &blocked.events, 1);
    CHECK(says(handle, "{\"id\": 3, \"command\": \"ping\"}", "ok")); /* only that call is blocked */
    CHECK(bridge_close(handle) == BRIDGE_BUSY);
    CHECK(strstr(bridge_error(), "have not returned"));
    CHECK(stubborn.replies == 1 && strstr(stubborn.last, "\"cancelled\""));
    CHECK(bridge_close(handle) == BRIDGE_CLOSED);
    CHECK(blocked.replies == 0); /* callbacks of a call run one after the other */
    pthread_mutex_unlock(&gate);
    await(&blocked, &blocked.replies, 1);
    CHECK(says(other, "{\"id\": 1, \"command\": \"let_go\"}", "\"success\":true"));
    CHECK(falls_to(threads, before));
    CHECK(stubborn.replies == 1);
    CHECK(bridge_close(other) == BRIDGE_OK);
}

static void *submit_ping(void *context) {
    box *box = context;
    const char *ping = "{\"id\": 1, \"command\": \"ping\"}";
    CHECK(bridge_submit(box->handle, bridge_text(ping), block, box, NULL) == BRIDGE_OK);
    return NULL;
}

static void *submit_heartbeat(void *context) {
    box *box = context;
    CHECK(bridge_submit(box->handle, bridge_text(""), block, box, NULL) == BRIDGE_OK);
    return NULL;
}

/* Callbacks on threads of the host, and callbacks for log lines that another handle writes. */
static void close_while_a_callback_runs(void) {
    void *(*submits[])(void *) = {submit_ping, submit_heartbeat};
    bridge *other = with_commands("");
    pthread_t submitter;
    size_t i;
    for (i = 0; i < 3; i++) {
        box box = BOX;
        box.handle = with_commands(", \"grace\": 0.1");
        pthread_mutex_lock(&gate);
        if (i < 2) {
            pthread_create(&submitter, NULL, submits[i], &box);
            await(&box, &box.replies, 1);
        } else {
            CHECK(bridge_listen(box.handle, block, &box) == BRIDGE_OK);
            CHECK(says(box.handle, "{\"id\": 1, \"command\": \"hello\", \"args\": {\"offers\":"
                                   " {\"logs\": true}}}", "logs"));
            pthread_create(&submitter, NULL, log_a_line, other);
            await(&box, &box.events, 1);
        }
        CHECK(bridge_close(box.handle) == BRIDGE_BUSY);
        pthread_mutex_unlock(&gate);
        pthread_join(submitter, NULL);
        box.handle = with_echo();
        submit_ping(&box);
        CHECK(bridge_close(box.handle) == BRIDGE_OK);
    }
    CHECK(bridge_close(other) == BRIDGE_OK);
}

static void *call_stubborn_inline(void *handle) {
    CHECK(says(handle, "{\"id\": 1, \"command\": \"stubborn_inline\"}", "\"id\":1"));
    return NULL;
}

static void *call_that_waits(void *handle) {
    bridge_bytes reply;
    const char *request = "{\"id\": 2, \"command\": \"count\", \"args\": {\"n\": 0}}";
    CHECK(bridge_call(handle, bridge_text(request), FOREVER, &reply) == BRIDGE_CLOSED);
    return NULL;
}

/* An inline handler that does not return delays a close likewise; requests that wait for it are refused. */
static void close_with_an_inline_handler_that_does_not_come_back(void) {
    bridge *handle = with_commands(", \"grace\": 0.1"), *other = with_commands("");
    pthread_t stubborn, waiting;
    pthread_create(&stubborn, NULL, call_stubborn_inline, handle);
    CHECK(says(other, "{\"id\": 1, \"command\": \"until_stuck\"}", "\"success\":true"));
    pthread_create(&waiting, NULL, call_that_waits, handle);
    usleep(50000); /* likely enough to wait; the test also passes if it does not */
    CHECK(bridge_close(handle) == BRIDGE_BUSY);
    CHECK(says(other, "{\"id\": 2, \"command\": \"let_go\"}", "\"success\":true"));
    pthread_join(stubborn, NULL);
    pthread_join(waiting, NULL);
    CHECK(bridge_close(other) == BRIDGE_OK);
}

static void call_back_in(void *context, bridge_kind kind, bridge_bytes *bytes) {
    box *box = context;
    CHECK(bridge_close(box->handle) == BRIDGE_BUSY && strstr(bridge_error(), "callback"));
    CHECK(pings(box->handle));
    CHECK(says(box->handle, "{\"id\": \"in\", \"command\": \"count\", \"args\": {\"n\": 1}}", "1"));
    collect(context, kind, bytes);
}

static void callbacks_that_call_back_in(void) {
    bridge *handle = with_commands("");
    box box = BOX;
    box.handle = handle;
    CHECK(bridge_submit(handle, bridge_text("{\"id\": 1, \"command\": \"ping\"}"), call_back_in,
                        &box, NULL) == BRIDGE_OK);
    CHECK(box.replies == 1);
    CHECK(bridge_submit(handle,
                        bridge_text("{\"id\": 2, \"command\": \"count\", \"stream\": true,"
                                    " \"args\": {\"n\": 3}}"),
                        call_back_in, &box, NULL) == BRIDGE_OK);
    await(&box, &box.replies, 2);
    CHECK(box.events == 3);
    CHECK(bridge_submit(handle,
                        bridge_text("{\"id\": 2, \"command\": \"count_inline\", \"stream\": true,"
                                    " \"args\": {\"n\": 3}}"),
                        call_back_in, &box, NULL) == BRIDGE_OK);
    CHECK(box.replies == 3 && box.events == 6);
    CHECK(bridge_close(handle) == BRIDGE_OK);
}

static void answer_host_calls(void *context, bridge_kind kind, bridge_bytes *bytes) {
    box *box = context;
    char id[32] = "", answer[128];
    bridge_bytes reply;
    if (kind == BRIDGE_HOST_CALL) {
        CHECK(sscanf(bytes->data, "{\"id\":\"%31[^\"]", id) == 1);
        snprintf(answer, sizeof answer, "{\"id\": \"%s\", \"success\": true, \"result\": 21}", id);
        CHECK(bridge_call(box->handle, bridge_text(answer), FOREVER, &reply) == BRIDGE_OK);
        CHECK(reply.size == 0 && reply.data == NULL);
        bridge_free(&reply);
    }
    collect(context, kind, bytes);
}

static void events_and_host_calls(void) {
    bridge *handle = with_commands("");
    box box = BOX, listener = BOX;
    box.handle = listener.handle = handle;
    CHECK(says(handle, "{\"id\": 1, \"command\": \"ask\"}", "\"not_allowed\""));
    CHECK(says(handle, "{\"id\": 1, \"command\": \"hello\", \"args\": {\"offers\": {\"tools\": true}}}",
               "tools"));
    CHECK(bridge_submit(handle, bridge_text("{\"id\": 2, \"command\": \"ask\"}"), answer_host_calls,
                        &box, NULL) == BRIDGE_OK);
    await(&box, &box.replies, 1);
    CHECK(box.host_calls == 1 && strstr(box.last, "\"result\":21"));
    CHECK(bridge_listen(handle, answer_host_calls, &listener) == BRIDGE_OK);
    CHECK(says(handle, "{\"id\": 3, \"command\": \"ask\"}", "\"result\":21"));
    CHECK(says(handle, "{\"id\": 4, \"command\": \"count\", \"stream\": true, \"args\": {\"n\": 5}}",
               "\"result\":5"));
    CHECK(listener.host_calls == 1 && listener.events == 5 && listener.replies == 0);
    CHECK(bridge_submit(handle, bridge_text("{\"id\": \"w9\", \"success\": true}"), collect, &box,
                        NULL) == BRIDGE_OK); /* an answer to no open call */
    CHECK(box.replies == 2 && box.empty == 1);
    CHECK(says(handle, "{\"id\": 5, \"command\": \"hello\", \"args\": {\"offers\": {\"logs\": true}}}",
               "logs"));
    CHECK(says(handle, "{\"id\": 6, \"command\": \"log\"}", "\"success\":true"));
    CHECK(listener.events == 6 && strstr(listener.last, "\"event\":\"log\"")); /* after the reply */
    CHECK(bridge_listen(handle, NULL, NULL) == BRIDGE_OK);
    CHECK(says(handle, "{\"id\": 7, \"command\": \"count\", \"stream\": true, \"args\": {\"n\": 5}}",
               "\"result\":5"));
    CHECK(bridge_close(handle) == BRIDGE_OK);
}

/* Log lines go to the last handle that asked for them, even after other handles are closed. */
static void logs_of_several_handles(void) {
    static const char hello[] = "{\"id\": 1, \"command\": \"hello\", \"args\": {\"offers\":"
                                " {\"logs\": true}}}";
    bridge *first = with_commands(""), *second = with_commands("");
    box box = BOX;
    CHECK(bridge_listen(second, collect, &box) == BRIDGE_OK);
    CHECK(says(first, hello, "logs") && says(second, hello, "logs"));
    log_a_line(first);
    await(&box, &box.events, 1);
    CHECK(says(first, "{\"id\": 2, \"command\": \"hello\"}", "\"accepted\":[]"));
    log_a_line(first);
    await(&box, &box.events, 2);
    CHECK(bridge_close(first) == BRIDGE_OK);
    log_a_line(second);
    await(&box, &box.events, 3);
    CHECK(bridge_close(second) == BRIDGE_OK);
}

/* A listener that does not return from a log line does not block others that log. */
static void logs_while_a_listener_blocks(void) {
    bridge *handle = with_commands("");
    box box = BOX;
    pthread_t first;
    CHECK(bridge_listen(handle, block, &box) == BRIDGE_OK);
    CHECK(says(handle, "{\"id\": 1, \"command\": \"hello\", \"args\": {\"offers\": {\"logs\": true}}}",
               "logs"));
    pthread_mutex_lock(&gate);
    pthread_create(&first, NULL, log_a_line, handle);
    await(&box, &box.events, 1);
    log_a_line(handle);
    CHECK(pings(handle));
    pthread_mutex_unlock(&gate);
    pthread_join(first, NULL);
    await(&box, &box.events, 2);
    CHECK(bridge_close(handle) == BRIDGE_OK);
}

static void deadlines_and_cancelling(void) {
    bridge *handle = with_commands("");
    uint64_t call = 0;
    bridge_bytes reply;
    box box = BOX;
    CHECK(bridge_call(handle, bridge_text("{\"id\": 1, \"command\": \"wait\"}"), 20, &reply) == 0);
    CHECK(holds(&reply, "\"deadline_exceeded\"") && holds(&reply, "\"timeout_ms\":20"));
    bridge_free(&reply);
    CHECK(bridge_call(handle, bridge_text("{\"id\": 1, \"command\": \"ping\"}"), 0, &reply) == 0);
    CHECK(holds(&reply, "\"ok\""));
    bridge_free(&reply);
    CHECK(bridge_call(handle, bridge_text("{\"id\": 1, \"command\": \"count\", \"args\": {\"n\": 0}}"),
                      INT64_MAX, &reply) == BRIDGE_OK);
    bridge_free(&reply);
    CHECK(says(handle, "{\"id\": 1, \"command\": \"wait\", \"timeout_ms\": 20}",
               "\"deadline_exceeded\""));
    CHECK(bridge_submit(handle, bridge_text("{\"id\": 2, \"command\": \"wait\"}"), collect, &box,
                        &call) == BRIDGE_OK);
    CHECK(call != 0 && bridge_cancel(handle, call) == BRIDGE_OK);
    await(&box, &box.replies, 1);
    CHECK(strstr(box.last, "\"cancelled\""));
    CHECK(bridge_cancel(handle, call) == BRIDGE_OK);
    CHECK(bridge_submit(handle, bridge_text("{\"id\": 3, \"command\": \"wait\"}"), collect, &box,
                        &call) == BRIDGE_OK);
    CHECK(says(handle, "{\"id\": 4, \"command\": \"cancel\", \"args\": {\"id\": 3}}",
               "\"cancelled\":true")); /* as in the protocol */
    await(&box, &box.replies, 2);
    CHECK(bridge_close(handle) == BRIDGE_OK);
}

typedef struct {
    box box;
    uint64_t number;
} numbered;

static void *submit_wait(void *context) {
    numbered *call = context;
    CHECK(bridge_submit(call->box.handle, bridge_text("{\"id\": 2, \"command\": \"wait\"}"),
                        collect, &call->box, &call->number) == BRIDGE_OK);
    return NULL;
}

/* A call can be cancelled as soon as it has a number, even while it waits for an inline handler. */
static void cancel_before_the_call_arrives(void) {
    bridge *handle = with_commands(""), *other = with_commands("");
    numbered call = {BOX, 0};
    pthread_t stubborn, submitter;
    call.box.handle = handle;
    pthread_create(&stubborn, NULL, call_stubborn_inline, handle);
    CHECK(says(other, "{\"id\": 1, \"command\": \"until_stuck\"}", "\"success\":true"));
    pthread_create(&submitter, NULL, submit_wait, &call);
    while (!__atomic_load_n(&call.number, __ATOMIC_ACQUIRE)) usleep(1000);
    CHECK(bridge_cancel(handle, call.number) == BRIDGE_OK);
    CHECK(says(other, "{\"id\": 2, \"command\": \"let_go\"}", "\"success\":true"));
    pthread_join(stubborn, NULL);
    pthread_join(submitter, NULL);
    await(&call.box, &call.box.replies, 1);
    CHECK(strstr(call.box.last, "\"cancelled\""));
    CHECK(bridge_close(handle) == BRIDGE_OK && bridge_close(other) == BRIDGE_OK);
}

/* Bytes are not copied, and are released when the last view of them is dropped. */
static void requests_without_a_copy(void) {
    static const char envelope[] = "{\"id\": 1, \"command\": \"keep\"}";
    static char frame[256];
    bridge *handle = with_commands("");
    bridge_request request = {frame, 0, count_release, &releases};
    bridge_bytes reply;
    memcpy(frame, "\xc1\1\0\0\0\0\0\1\0\0\0", 11);
    frame[11] = (char)(sizeof envelope - 1);
    frame[15] = 5;
    memcpy(frame + 16, envelope, sizeof envelope - 1);
    memcpy(frame + 64, "early", 5);
    request.size = 69;
    CHECK(bridge_call(handle, request, FOREVER, &reply) == BRIDGE_OK);
    CHECK(holds(&reply, "\"success\":true") && releases == 0);
    bridge_free(&reply);
    memcpy(frame + 64, "later", 5);
    CHECK(says(handle, "{\"id\": 2, \"command\": \"kept\"}", "\"later\"") && releases == 1);
    request.release = NULL;
    CHECK(bridge_call(handle, request, FOREVER, &reply) == BRIDGE_OK);
    bridge_free(&reply);
    memset(frame, 0, sizeof frame);
    CHECK(says(handle, "{\"id\": 2, \"command\": \"kept\"}", "\"later\"") && releases == 1);
    request.data = "{\"id\": 3, \"command\": \"count\", \"args\": {\"n\": 2}}";
    request.size = strlen(request.data);
    request.release = count_release;
    CHECK(bridge_call(handle, request, FOREVER, &reply) == BRIDGE_OK);
    bridge_free(&reply);
    CHECK(bridge_close(handle) == BRIDGE_OK && releases == 2);
}

typedef struct {
    bridge *handle;
    int number;
} worker;

static void *call_many(void *context) {
    worker *worker = context;
    char request[120], expected[60];
    int i;
    for (i = 0; i < 200; i++) {
        snprintf(request, sizeof request, "{\"id\": \"%d-%d\", \"command\": \"%s\"}", worker->number, i,
                 i % 4 ? "ping" : "sleep");
        snprintf(expected, sizeof expected, "{\"id\":\"%d-%d\",\"success\":true", worker->number, i);
        CHECK(says(worker->handle, request, expected));
    }
    return NULL;
}

static int python_threads(void) {
    PyGILState_STATE held = PyGILState_Ensure();
    PyThreadState *state = PyInterpreterState_ThreadHead(PyInterpreterState_Main());
    int count = 0;
    for (; state; state = PyThreadState_Next(state)) count++;
    PyGILState_Release(held);
    return count;
}

/* Threads unknown to Python get their own replies, and leave nothing behind when they end. */
static void many_threads(void) {
    bridge *handle = with_echo();
    pthread_t callers[16];
    worker workers[16];
    int i, before = python_threads();
    for (i = 0; i < 16; i++) {
        workers[i] = (worker){handle, i};
        pthread_create(&callers[i], NULL, call_many, &workers[i]);
    }
    for (i = 0; i < 16; i++) pthread_join(callers[i], NULL);
    CHECK(bridge_close(handle) == BRIDGE_OK);
    CHECK(falls_to(python_threads, before));
}

static void *open_and_close(void *unused) {
    bridge *handle = with_echo();
    (void)unused;
    CHECK(pings(handle));
    CHECK(bridge_close(handle) == BRIDGE_OK);
    return NULL;
}

/* Handles opened at the same time, and after the thread that started Python has ended. */
static void many_opens(void) {
    pthread_t threads[8];
    int i;
    for (i = 0; i < 8; i++) pthread_create(&threads[i], NULL, open_and_close, NULL);
    for (i = 0; i < 8; i++) pthread_join(threads[i], NULL);
    for (i = 0; i < 20; i++) open_and_close(NULL);
}

static void forks(void) {
    bridge *handle = with_echo();
    bridge_request request = {"{}", 2, count_release, &releases};
    bridge_bytes reply, kept;
    int status;
    pid_t child;
    CHECK(bridge_call(handle, bridge_text("{\"id\": 1, \"command\": \"ping\"}"), -1, &kept) == 0);
    child = fork();
    if (child == 0) {
        CHECK(bridge_call(handle, request, FOREVER, &reply) == BRIDGE_FORKED && releases == 1);
        CHECK(bridge_submit(handle, request, collect, NULL, NULL) == BRIDGE_FORKED);
        CHECK(bridge_cancel(handle, 1) == BRIDGE_FORKED);
        CHECK(bridge_open(NULL, "{}") == NULL && bridge_error_code() == BRIDGE_FORKED);
        CHECK(bridge_close(handle) == BRIDGE_FORKED);
        bridge_free(&kept);
        exit(0); /* with all exit hooks */
    }
    CHECK(waitpid(child, &status, 0) == child && status == 0);
    bridge_free(&kept);
    CHECK(pings(handle));
    CHECK(bridge_close(handle) == BRIDGE_OK);
}

/* A fork at any moment of the first open: every call in the child returns. */
#ifdef __has_feature
#if __has_feature(thread_sanitizer)
#define __SANITIZE_THREAD__ 1
#endif
#endif

static void forks_while_python_starts(void) {
#ifdef __SANITIZE_THREAD__
    return; /* the sanitizer's runtime sometimes waits for a thread that the child does not have */
#endif
    pthread_t opener;
    pid_t children[20];
    int i, status;
    pthread_create(&opener, NULL, open_and_close, NULL);
    for (i = 0; i < 20; i++) {
        children[i] = fork();
        if (children[i] == 0) {
            alarm(SECONDS_TO_WAIT);
            CHECK(bridge_open(NULL, "{\"adapter\": \"echo\"}") ||
                  bridge_error_code() == BRIDGE_FORKED);
            _exit(0);
        }
        usleep(2000);
    }
    pthread_join(opener, NULL);
    for (i = 0; i < 20; i++) {
        CHECK(waitpid(children[i], &status, 0) == children[i] && status == 0);
    }
}

static int signal_handlers(void) {
    int number, count = 0;
    for (number = 1; number < 32; number++) {
        struct sigaction action;
        if (sigaction(number, NULL, &action) == 0) count += action.sa_handler != SIG_DFL;
    }
    return count;
}

static void surprises(void) {
    char cwd[4096], now[4096], locale[200], *printed;
    int pipe_[2], before = threads(), handlers, saved = dup(1);
    ssize_t size;
    char bytes[100];
    bridge *handle;
    setlocale(LC_ALL, "C");
    snprintf(locale, sizeof locale, "%s", setlocale(LC_ALL, NULL));
    CHECK(getcwd(cwd, sizeof cwd) && pipe(pipe_) == 0);
    handlers = signal_handlers();
    dup2(pipe_[1], 1);
    dup2(pipe_[0], 0);
    CHECK(write(pipe_[1], "mine", 4) == 4);
    handle = with_commands("");
    CHECK(says(handle, "{\"id\": 1, \"command\": \"print\"}", "\"success\":true"));
    CHECK(bridge_close(handle) == BRIDGE_OK);
    size = read(0, bytes, sizeof bytes);
    CHECK(size == 4 && !memcmp(bytes, "mine", 4));
    dup2(saved, 1);
    CHECK(signal_handlers() == handlers);
    CHECK(!strcmp(setlocale(LC_ALL, NULL), locale));
    CHECK(getcwd(now, sizeof now) && !strcmp(cwd, now));
    CHECK(falls_to(threads, before));
    printed = getenv("BRIDGE_TEST");
    CHECK(printed && !strcmp(printed, "1"));
}

/* A host that does not free or close anything. */
static void never_freed(void) {
    static box box = BOX;
    bridge *handle = with_commands("");
    bridge_bytes reply;
    int i;
    for (i = 0; i < 100; i++) {
        CHECK(bridge_call(handle, bridge_text("{\"id\": 1, \"command\": \"ping\"}"), -1, &reply) == 0);
    }
    CHECK(bridge_submit(handle, bridge_text("{\"id\": 2, \"command\": \"wait\"}"), collect, &box,
                        NULL) == BRIDGE_OK);
    CHECK(bridge_submit(handle, bridge_text("{\"id\": 3, \"command\": \"stubborn\"}"), collect, &box,
                        NULL) == BRIDGE_OK);
}

static void fails_to_open(const char *python, const char *why) {
    CHECK(bridge_open(python, "{\"adapter\": \"echo\"}") == NULL);
    CHECK(bridge_error_code() == BRIDGE_PYTHON);
    CHECK(strstr(bridge_error(), why) != NULL);
}

static void put(const char *path, const char *text) {
    FILE *file = fopen(path, "w");
    CHECK(file != NULL);
    fputs(text, file);
    fclose(file);
}

/* A path that is recognised as not a Python does not prevent a later start. */
static void no_python(void) {
    char directory[] = "/tmp/bridge-XXXXXX", path[4200];
    bridge *handle;
    CHECK(mkdtemp(directory));
    snprintf(path, sizeof path, "%s/pyvenv.cfg", directory);
    put(path, "home = /usr/bin\nversion = 3.2.1\n");
    fails_to_open(directory, "is Python 3.2");
    put(path, "home = /usr/bin\n");
    fails_to_open(directory, "no bin/python");
    fails_to_open("/no/such/python", "no Python at /no/such/python");
    fails_to_open("/etc/passwd", "is not executable");
    fails_to_open("/tmp", "is not a home of Python");
    handle = with_echo();
    CHECK(pings(handle));
    CHECK(bridge_close(handle) == BRIDGE_OK);
}

/* An environment without the package, with a .pth file that runs code at the start. */
static void no_package(void) {
    const char *folders[] = {"lib", "lib/" PYTHON, "lib/" PYTHON "/site-packages"};
    char directory[] = "/tmp/bridge-XXXXXX", path[4200], text[4200];
    int handlers = signal_handlers();
    size_t i;
    CHECK(mkdtemp(directory));
    for (i = 0; i < 3; i++) {
        snprintf(path, sizeof path, "%s/%s", directory, folders[i]);
        CHECK(mkdir(path, 0700) == 0);
    }
    snprintf(path, sizeof path, "%s/lib/" PYTHON "/site-packages/start.pth", directory);
    put(path, "import signal, os; os.environ['BRIDGE_TEST'] = '2'\n");
    snprintf(path, sizeof path, "%s/bin", directory);
    CHECK(mkdir(path, 0700) == 0);
    snprintf(path, sizeof path, "%s/bin/python", directory);
    CHECK(symlink(BASE_PYTHON, path) == 0);
    snprintf(path, sizeof path, "%s/pyvenv.cfg", directory);
    snprintf(text, sizeof text, "home = %.*s\n", (int)(strrchr(BASE_PYTHON, '/') - BASE_PYTHON),
             BASE_PYTHON);
    put(path, text);
    fails_to_open(directory, "cannot import the package bridge");
    CHECK(strstr(bridge_error(), "No module named 'bridge'"));
    CHECK(getenv("BRIDGE_TEST") && !strcmp(getenv("BRIDGE_TEST"), "2"));
    CHECK(signal_handlers() == handlers);
    fails_to_open(NULL, "No module named 'bridge'");
}

/* A home whose standard library is an empty directory. */
static void broken_python(void) {
    char directory[] = "/tmp/bridge-XXXXXX", path[4200];
    const char *part, *parts[] = {"lib", "lib/" PYTHON, "lib/" PYTHON "/encodings"};
    size_t i;
    CHECK(mkdtemp(directory));
    for (i = 0; i < 3; i++) {
        part = parts[i];
        snprintf(path, sizeof path, "%s/%s", directory, part);
        CHECK(mkdir(path, 0700) == 0);
    }
    fails_to_open(directory, "does not start");
    fails_to_open(NULL, "restart this process");
}

/* Return a request whose args are nested `depth` levels deep; `closing` may be empty. */
static bridge_request deep(const char *head, size_t head_size, const char *opening, const char *inner,
                           const char *closing, int depth, const char *tail, char *buffer) {
    bridge_request request = {NULL, 0, NULL, NULL};
    char *at = buffer;
    int i;
    memcpy(at, head, head_size);
    at += head_size;
    for (i = 0; i < depth; i++) at += sprintf(at, "%s", opening);
    at += sprintf(at, "%s", inner);
    for (i = 0; i < depth; i++) at += sprintf(at, "%s", closing);
    at += sprintf(at, "%s", tail);
    request.data = buffer;
    request.size = (size_t)(at - buffer);
    return request;
}

/* Run on a thread with little stack: send deep requests, each of which must be answered or refused. */
static void *call_deeply(void *handle) {
    static const int depths[] = {1, 300, 500, 508, 520, 1100, 100000};
    static char buffer[1 << 20];
    const char json[] = "{\"id\": 7, \"command\": \"echo_decoded\", \"args\": {\"a\": ";
    const char msgpack[] = "\x83\xa2id\x07\xa7" "command\xac" "echo_decoded\xa4" "args\x81\xa1" "a";
    size_t i, format;
    intptr_t answered = 0;
    for (i = 0; i < sizeof depths / sizeof *depths; i++) {
        for (format = 0; format < 4; format++) {
            bridge_request request;
            bridge_bytes reply = {NULL, 0, NULL};
            box box = BOX;
            int code;
            switch (format) {
                case 0: request = deep(json, sizeof json - 1, "[", "1", "]", depths[i], "}}", buffer); break;
                case 1: request = deep(json, sizeof json - 1, "{\"k\":", "1", "}", depths[i], "}}", buffer); break;
                case 2: request = deep(msgpack, sizeof msgpack - 1, "\x91", "\x01", "", depths[i], "", buffer); break;
                default: request = deep(msgpack, sizeof msgpack - 1, "\x81\xa1k", "\x01", "", depths[i], "", buffer);
            }
            code = bridge_call(handle, request, FOREVER, &reply);
            CHECK(code == BRIDGE_OK || code == BRIDGE_STACK);
            if (code == BRIDGE_OK) {
                CHECK(holds(&reply, depths[i] <= 500 ? "result" : depths[i] > 512 ? "nested" : "id"));
                answered++;
            }
            bridge_free(&reply);
            CHECK(bridge_submit(handle, request, collect, &box, NULL) == code);
            CHECK(box.replies == (code == BRIDGE_OK));
        }
    }
    if (!answered) {
        CHECK(bridge_open(NULL, "{\"adapter\": \"echo\"}") == NULL);
        CHECK(bridge_error_code() == BRIDGE_STACK && strstr(bridge_error(), "stack"));
        CHECK(bridge_cancel(handle, 1) == BRIDGE_STACK);
        CHECK(bridge_listen(handle, NULL, NULL) == BRIDGE_STACK);
    }
    return (void *)answered;
}

static void threads_with_little_stack(void) {
    bridge *handle = with_echo();
    size_t kilobytes, first_answer = 0;
    for (kilobytes = 64; kilobytes <= 1024; kilobytes += 32) {
        pthread_attr_t attributes;
        pthread_t thread;
        void *answered;
        pthread_attr_init(&attributes);
        CHECK(pthread_attr_setstacksize(&attributes, kilobytes * 1024) == 0);
        CHECK(pthread_create(&thread, &attributes, call_deeply, handle) == 0);
        CHECK(pthread_join(thread, &answered) == 0);
        pthread_attr_destroy(&attributes);
        if (answered && !first_answer) first_answer = kilobytes;
        CHECK(!answered == !first_answer);
    }
    CHECK(first_answer > BRIDGE_STACK_SIZE / 1024 && first_answer < BRIDGE_STACK_SIZE / 1024 + 128);
    CHECK(pings(handle));
    CHECK(bridge_close(handle) == BRIDGE_OK);
}

static const struct {
    const char *name;
    void (*run)(void);
} tests[] = {
#define TEST(name) {#name, name}
    TEST(open_ping_close),
    TEST(formats),
    TEST(bad_arguments),
    TEST(bad_options),
    TEST(after_close),
    TEST(close_with_calls_in_flight),
    TEST(close_with_what_does_not_come_back),
    TEST(close_while_a_callback_runs),
    TEST(close_with_an_inline_handler_that_does_not_come_back),
    TEST(callbacks_that_call_back_in),
    TEST(events_and_host_calls),
    TEST(logs_while_a_listener_blocks),
    TEST(logs_of_several_handles),
    TEST(deadlines_and_cancelling),
    TEST(cancel_before_the_call_arrives),
    TEST(requests_without_a_copy),
    TEST(many_threads),
    TEST(many_opens),
    TEST(forks),
    TEST(forks_while_python_starts),
    TEST(surprises),
    TEST(threads_with_little_stack),
    TEST(never_freed),
    TEST(no_python),
    TEST(no_package),
    TEST(broken_python),
};

static void *nothing(void *unused) { return unused; }

int main(int count, char **arguments) {
    pthread_t first;
    size_t i;
    pthread_create(&first, NULL, nothing, NULL); /* sanitizers start their own thread with the first one */
    pthread_join(first, NULL);
    for (i = 0; i < sizeof tests / sizeof *tests; i++) {
        if (count > 1 && !strcmp(arguments[1], tests[i].name)) {
            tests[i].run();
            return 0;
        }
    }
    fprintf(stderr, "no test %s\n", count > 1 ? arguments[1] : "is named");
    return 2;
}
