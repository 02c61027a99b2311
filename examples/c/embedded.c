/* Run a DSPy program in this process, with a tool in C and a streamed answer. In CMake:

   find_package(bridge CONFIG REQUIRED)
   target_link_libraries(embedded PRIVATE bridge::bridge) */

#include <pthread.h>
#include <stdlib.h>

#include "bridge.h"
#include "conversation.h"

typedef struct {
    bridge *handle;
    pthread_mutex_t lock;
    pthread_cond_t done;
    int is_done, is_answered;
} asking;

static void need(int status) {
    if (status == BRIDGE_OK) return;
    fprintf(stderr, "bridge: %s\n", bridge_error());
    exit(1);
}

static void on_message(void *context, bridge_kind kind, bridge_bytes *bytes) {
    asking *asking = context;
    char answer[256];
    bridge_bytes none;
    print_message(bytes->data, bytes->size);
    if (kind == BRIDGE_HOST_CALL) {
        answer_tool(bytes->data, bytes->size, answer, sizeof answer);
        need(bridge_call(asking->handle, bridge_text(answer), -1, &none));
    } else if (kind == BRIDGE_REPLY) {
        pthread_mutex_lock(&asking->lock);
        asking->is_done = 1;
        asking->is_answered = is_answered(bytes->data, bytes->size);
        pthread_cond_signal(&asking->done);
        pthread_mutex_unlock(&asking->lock);
    }
}

int main(void) {
    asking asking = {NULL, PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, 0, 0};
    bridge_bytes reply;
    int i;
    asking.handle = bridge_open(NULL, "{\"adapter\": \"dspy\"}");
    need(asking.handle ? BRIDGE_OK : bridge_error_code());
    for (i = 0; i < PREPARATIONS; i++) {
        need(bridge_call(asking.handle, bridge_text(preparations[i]), -1, &reply));
        print_message(reply.data, reply.size);
        bridge_free(&reply);
    }
    need(bridge_submit(asking.handle, bridge_text(question), on_message, &asking, NULL));
    pthread_mutex_lock(&asking.lock);
    while (!asking.is_done) pthread_cond_wait(&asking.done, &asking.lock);
    pthread_mutex_unlock(&asking.lock);
    need(bridge_close(asking.handle));
    return !asking.is_answered;
}
