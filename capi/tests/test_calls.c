/* Calls: payloads, arguments, deadlines, cancelling, callbacks and listeners. */

#include "support.h"

void open_ping_close(void) {
    bridge *handle = with_echo();
    CHECK(strlen(bridge_version()) >= 5);
    CHECK(pings(handle));
    CHECK(says(handle, "{\"id\": 2, \"command\": \"sleep\"}", "\"slept\":0.0"));
    CHECK(says(handle, "{\"id\": 3, \"command\": \"pong\"}", "\"unknown_command\""));
    CHECK(says(handle, "{\"id\": 4, \"command\": \"get_stats\"}", "\"command_count\":2"));
    CHECK(bridge_close(handle) == BRIDGE_OK);
}

/* JSON, MessagePack, ETF, and invalid payloads. The vectors cover more. */
void formats(void) {
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

/* NULL for every argument, an empty payload, and one that is far too long. */
void bad_arguments(void) {
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

void bad_options(void) {
    static char deep[20000];
    static const char *refused[][2] = {
        {"{\"adapter\": \"no_such_module:adapter\"}", "no_such_module"},
        {"{\"adapter\": \"json:loads\"}", "not a bridge.Adapter"},
        {"{\"threads\": 0}", "$.threads"},
        {"{\"mode\": \"x\"}", "$.mode"},
        {"{\"thread\": 1}", "unknown field `thread`"},
        {"{\"fds\": [0, 1]}", "unknown field `fds`"},
        {"{\"store\": \"redis:x\"}", "sqlite:PATH"},
        {"[]", "Expected `object`"},
        {"{", "truncated"},
        {"{\"adapter\": \"\xff\"}", "options"},
        {deep, "options"},
    };
    bridge *handle;
    size_t i;
    memset(deep, '[', sizeof deep - 1);
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

static void call_back_in(void *context, bridge_kind kind, bridge_bytes *bytes) {
    box *box = context;
    CHECK(bridge_close(box->handle) == BRIDGE_BUSY && strstr(bridge_error(), "callback"));
    CHECK(pings(box->handle));
    CHECK(says(box->handle, "{\"id\": \"in\", \"command\": \"count\", \"args\": {\"n\": 1}}", "1"));
    collect(context, kind, bytes);
}

void callbacks_that_call_the_library(void) {
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

void events_and_host_calls(void) {
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
void logs_of_several_handles(void) {
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
void logs_while_a_listener_blocks(void) {
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

void deadlines_and_cancelling(void) {
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
void cancel_before_the_call_arrives(void) {
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
void requests_without_a_copy(void) {
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
