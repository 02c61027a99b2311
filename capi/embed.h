/* The interface between bridge.c and bridge/_embed.pyx: a struct of functions in a capsule. */

#ifndef BRIDGE_EMBED_H
#define BRIDGE_EMBED_H

#include <Python.h>

#include "bridge.h"

/* The capsule's name. Its number changes with the struct below, so that a package of another version
   is not found. */
#define BRIDGE_EMBED_CAPSULE "bridge._embed.interface_1"

/* What `answer` has done with the reply. */
enum { BRIDGE_LATER, BRIDGE_REPLIED, BRIDGE_ENDED };

/* A function that calls a callback without the GIL. Called with the GIL. */
typedef void (*bridge_run)(void *handle, bridge_callback callback, void *context, bridge_kind kind,
                           bridge_bytes *bytes);

/* All functions are called with the GIL. They return -1 and set a Python exception on failure. */
typedef struct bridge_embed {
    /* Must be called first. Every callback will be called through run(handle, ...), and may take
       ownership of its bytes. */
    int (*attach)(PyObject *endpoint, bridge_run run, void *handle);
    /* Handle a request. Call the request's `release` in every case.
       BRIDGE_REPLIED: the reply is in `reply`.
       BRIDGE_LATER: the callback gets the reply, or already has it.
       BRIDGE_ENDED: the endpoint takes no requests any more.
       Events and calls into the host go to the callback if `streams`, else to the listener. */
    int (*answer)(PyObject *endpoint, const bridge_request *request, uint64_t number,
                  bridge_callback callback, void *context, int streams, bridge_bytes *reply);
    /* Set the listener. Return BRIDGE_ENDED if the endpoint takes no requests any more, else 0. */
    int (*listen)(PyObject *endpoint, bridge_callback callback, void *context);
} bridge_embed;

#endif
