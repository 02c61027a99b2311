/* Threads of the host: many at once, and threads with little stack. */

#include "support.h"

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
void many_threads(void) {
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
    CHECK(drops_to(python_threads, before));
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

void threads_with_little_stack(void) {
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
