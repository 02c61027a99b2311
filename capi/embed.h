/* What bridge.c and bridge/_embed.pyx know of each other. */

#ifndef BRIDGE_EMBED_H
#define BRIDGE_EMBED_H

#include <Python.h>

#include "bridge.h"

/* The interface below; also the end of the capsule's name, so that others are not found. */
#define BRIDGE_EMBED_CAPSULE "bridge._embed.interface_1"

/* Where a reply is. */
enum { BRIDGE_LATER, BRIDGE_REPLIED, BRIDGE_ENDED };

/* Calls a callback; itself called with the GIL. */
typedef void (*bridge_run)(void *handle, bridge_callback callback, void *context, bridge_kind kind,
                           bridge_bytes *bytes);

/* All are called with the GIL; -1 is a Python error. */
typedef struct bridge_embed {
    /* Before all others: `run` calls all callbacks, with `handle` and bytes that they may take. */
    int (*attach)(PyObject *door, bridge_run run, void *handle);
    /* Hand a request to `door`. BRIDGE_REPLIED: the reply is in `reply`. BRIDGE_LATER: the callback
       gets it, or has it. BRIDGE_ENDED: the door answers no more. Events and calls into the host go
       to the callback if `streams`, else to the listener. `release` of the request is called in any
       case. */
    int (*answer)(PyObject *door, const bridge_request *request, uint64_t number,
                  bridge_callback callback, void *context, int streams, bridge_bytes *reply);
    /* BRIDGE_ENDED, or 0. */
    int (*listen)(PyObject *door, bridge_callback callback, void *context);
} bridge_embed;

#endif
