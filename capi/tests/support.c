#include "support.h"

bridge *opened(const char *options) {
    bridge *handle = bridge_open(NULL, options);
    CHECK(handle != NULL);
    return handle;
}

bridge *with_echo(void) { return opened("{\"adapter\": \"echo\"}"); }

bridge *with_commands(const char *more) {
    char options[512];
    snprintf(options, sizeof options, "{\"adapter\": \"commands:adapter\", \"path\": [\"%s\"]%s}",
             TESTS, more);
    return opened(options);
}

int holds(const bridge_bytes *bytes, const char *text) {
    return memmem(bytes->data, bytes->size, text, strlen(text)) != NULL;
}

int says(bridge *handle, const char *request, const char *text) {
    bridge_bytes reply;
    int has_it;
    CHECK(bridge_call(handle, bridge_text(request), FOREVER, &reply) == BRIDGE_OK);
    has_it = holds(&reply, text);
    if (!has_it) fprintf(stderr, "%.*s\n", (int)reply.size, (const char *)reply.data);
    bridge_free(&reply);
    return has_it;
}

int pings(bridge *handle) {
    return says(handle, "{\"id\": 1, \"command\": \"ping\"}", "\"status\":\"ok\"");
}

void collect(void *context, bridge_kind kind, bridge_bytes *bytes) {
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

void await(box *box, const int *count, int at_least) {
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += SECONDS_TO_WAIT;
    pthread_mutex_lock(&box->lock);
    while (*count < at_least) {
        CHECK(pthread_cond_timedwait(&box->changed, &box->lock, &until) == 0);
    }
    pthread_mutex_unlock(&box->lock);
}

int threads(void) {
    DIR *tasks = opendir("/proc/self/task");
    int count = -2;
    while (readdir(tasks)) count++;
    closedir(tasks);
    return count;
}

/* The system removes a joined thread from its list with a short delay. */
int drops_to(int (*count)(void), int wanted) {
    int tries;
    for (tries = 0; count() > wanted && tries < 1000; tries++) usleep(10000);
    return count() == wanted;
}

int releases;

void count_release(void *context) {
    CHECK(context == &releases);
    releases++;
}

pthread_mutex_t gate = PTHREAD_MUTEX_INITIALIZER;

void *log_a_line(void *handle) {
    CHECK(says(handle, "{\"id\": \"log\", \"command\": \"log\"}", "\"success\":true"));
    return NULL;
}

void block(void *context, bridge_kind kind, bridge_bytes *bytes) {
    collect(context, kind, bytes);
    pthread_mutex_lock(&gate);
    pthread_mutex_unlock(&gate);
}

void *call_stubborn_inline(void *handle) {
    CHECK(says(handle, "{\"id\": 1, \"command\": \"stubborn_inline\"}", "\"id\":1"));
    return NULL;
}
