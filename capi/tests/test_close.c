/* Closing a handle while calls, callbacks and handlers run. */

#include "support.h"

void after_close(void) {
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
void close_with_calls_in_flight(void) {
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
    CHECK(drops_to(threads, before));
}

/* A handler and a callback that do not return delay a close by its grace period and no more. */
void close_with_blocked_threads(void) {
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
    CHECK(drops_to(threads, before));
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
void close_while_a_callback_runs(void) {
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

static void *call_that_waits(void *handle) {
    bridge_bytes reply;
    const char *request = "{\"id\": 2, \"command\": \"count\", \"args\": {\"n\": 0}}";
    CHECK(bridge_call(handle, bridge_text(request), FOREVER, &reply) == BRIDGE_CLOSED);
    return NULL;
}

/* An inline handler that does not return delays a close likewise; requests that wait for it are refused. */
void close_with_a_blocked_inline_handler(void) {
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

/* A host that does not free or close anything. */
void never_freed(void) {
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
