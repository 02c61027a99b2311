/* The worker in this process: the requests of docs/protocol.md in, its replies out, without a pipe.

   A payload is a frame without its four bytes of length, in any of the formats. A handle has the
   dispatcher that a worker of its own would have: sessions, statistics, threads. All handles share
   one Python, which the first bridge_open starts and nothing ends.

   Everything here may be called from any thread with BRIDGE_STACK_SIZE of stack left, and from
   several at once; no thread has to be known to Python, and none keeps its GIL while it waits. What is not stated to return a status
   cannot fail. docs/embedding.md is the whole contract. */

#ifndef BRIDGE_H
#define BRIDGE_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__GNUC__)
#define BRIDGE_API __attribute__((visibility("default")))
#else
#define BRIDGE_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

typedef struct bridge bridge;

typedef enum bridge_status {
    BRIDGE_OK = 0,
    BRIDGE_INVALID = 1,  /* NULL where there must be something, options that are none */
    BRIDGE_PYTHON = 2,   /* Python does not start, or has no working package */
    BRIDGE_CLOSED = 3,   /* the handle is closed, or was shut down */
    BRIDGE_FORKED = 4,   /* this process is a fork of the one that started Python */
    BRIDGE_MEMORY = 5,
    BRIDGE_BUSY = 6,     /* bridge_close: in a callback, or threads that do not come back */
    BRIDGE_FAILED = 7,   /* anything else; bridge_error says what */
    BRIDGE_STACK = 8     /* the thread has less than BRIDGE_STACK_SIZE of its stack left */
} bridge_status;

/* Bytes of stack that a thread has to have left where it calls this library, bridge_free aside. */
enum { BRIDGE_STACK_SIZE = 256 * 1024 };

/* A request. With `release` its bytes are not copied: they must neither change nor go before
   release(context) is called, once, from whichever thread drops the last view of them, perhaps
   long after the reply (a handler may keep an array); it must be quick and call nothing of this
   library. It is called also where the request is refused. Arrays in it are read in place where
   `data` is aligned to 64 bytes. Without `release` the bytes are copied, and are the caller's again
   when the function returns. */
typedef struct bridge_request {
    const void *data;
    size_t size;
    void (*release)(void *context);
    void *context;
} bridge_request;

/* Bytes that belong to whoever holds this until bridge_free; all zero is none. */
typedef struct bridge_bytes {
    const void *data;
    size_t size;
    void *owner;
} bridge_bytes;

typedef enum bridge_kind {
    BRIDGE_REPLY = 0,    /* once, and nothing of this call behind it */
    BRIDGE_EVENT = 1,    /* of a request with "stream": true; a line of the log */
    BRIDGE_HOST_CALL = 2 /* a request to the host, which sends its answer as a request of its own */
} bridge_kind;

/* Called without Python's GIL, on the thread that has the message: that of bridge_submit, also
   before it returns, or one of the library's. It may call everything but bridge_close, and holds up
   its own call and that thread while it runs: it must not wait without an end for a call that needs
   the last of the handle's threads, or for a deadline that is told on its own thread. `bytes` are freed behind it; to keep them, take the
   struct and leave zeros in its place. */
typedef void (*bridge_callback)(void *context, bridge_kind kind, bridge_bytes *bytes);

/* The version of the library, "1.2.3". */
BRIDGE_API const char *bridge_version(void);

/* A new handle, or NULL.
   python: the executable of an environment with the package, its directory, or a Python home; NULL:
   $BRIDGE_PYTHON, $VIRTUAL_ENV, or the one that the library was built with. Where Python runs
   already it is used as it is, and this must be NULL or what it was started with.
   options: a JSON map, NULL is empty: "adapter" ("dspy", "echo", "module:attribute"), "path" (list
   of directories to find it in), and a worker's: mode, worker_id, protocol, threads, queue,
   max_frame, grace, store, max_sessions, session_ttl, session_programs, session_bytes, log_level, telemetry,
   api_bases. */
BRIDGE_API bridge *bridge_open(const char *python, const char *options);

/* Send a request and wait for its reply, which is the caller's to free. Of a payload that gets no
   reply (the answer to a call into the host) the reply is zeros.
   timeout_ms: when it is over, the call is ended and the reply is `deadline_exceeded`; negative:
   never. While an inline handler of another thread's call runs, a request waits for it, and that
   is not counted. Events, and calls into the host, go to the handle's listener. */
BRIDGE_API int bridge_call(bridge *handle, bridge_request request, int64_t timeout_ms,
                           bridge_bytes *reply);

/* Send a request; all that comes of it goes to `callback`: events and calls into the host, and then
   one BRIDGE_REPLY, with zeros of what gets none. Where this fails, it is not called.
   call: NULL, or where to put a number for bridge_cancel before the request is sent, in one atomic
   write: another thread may read it there, atomically, to cancel a submit that has not returned. */
BRIDGE_API int bridge_submit(bridge *handle, bridge_request request, bridge_callback callback,
                             void *context, uint64_t *call);

/* End a call: its reply is `cancelled`. BRIDGE_OK also where it is over already. */
BRIDGE_API int bridge_cancel(bridge *handle, uint64_t call);

/* Have what belongs to no bridge_submit: events and calls into the host of bridge_call, and log
   lines after a `hello` that offers logs: all of this process, for the last handle that has sent
   one. One for each handle; NULL: nobody. The one before may
   still be running when this returns. */
BRIDGE_API int bridge_listen(bridge *handle, bridge_callback callback, void *context);

/* Free bytes, once or again; NULL is harmless. Also after bridge_close. */
BRIDGE_API void bridge_free(bridge_bytes *bytes);

/* Close a handle. Open calls are told to stop, and those that have not replied within the option
   `grace` (seconds, 2) are answered `cancelled`. Then the handle's threads end, and its callbacks
   on whatever thread. BRIDGE_BUSY: some did not, because a handler or a callback has not returned
   within another `grace` (at least a second); the handle is closed all the same. Behind BRIDGE_OK
   no callback of the handle runs, and none will.
   A handle stays valid for ever: whoever calls it afterwards gets BRIDGE_CLOSED. */
BRIDGE_API int bridge_close(bridge *handle);

/* What the last function that failed on this thread failed with: a line, and a bridge_status. */
BRIDGE_API const char *bridge_error(void);
BRIDGE_API int bridge_error_code(void);

/* A request of a text that ends with a zero byte; copied. */
static inline bridge_request bridge_text(const char *text) {
    bridge_request request = {text, text ? strlen(text) : 0, 0, 0};
    return request;
}

#ifdef __cplusplus
}
#endif

#endif
