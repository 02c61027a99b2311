/* libbridge runs a worker inside the host's process. Requests and replies are the messages of
   docs/protocol.md, passed in memory instead of through a pipe.

   Payloads: a payload is the content of a frame, without the four bytes of length, in any of the
   formats.

   Handles: each handle has its own dispatcher, with its own sessions, statistics and threads, as a
   worker process has. All handles share one Python interpreter. The first bridge_open starts it,
   and it runs until the process ends.

   Threads: every function may be called from any thread, and from several threads at once. The
   thread must have at least BRIDGE_STACK_SIZE bytes of stack left, except for bridge_free. Python
   need not know the thread. A caller that holds the GIL does not keep it while the function waits.

   Errors: a function that returns int returns a bridge_status. bridge_open returns NULL on failure.
   The other functions cannot fail.

   docs/embedding.md is the complete contract. */

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
    BRIDGE_INVALID = 1,  /* an argument is NULL or invalid, or the options are */
    BRIDGE_PYTHON = 2,   /* Python does not start, or the package bridge cannot be imported */
    BRIDGE_CLOSED = 3,   /* the handle was closed, or shut down by a request */
    BRIDGE_FORKED = 4,   /* this process is a fork of the one that started Python */
    BRIDGE_MEMORY = 5,   /* out of memory */
    BRIDGE_BUSY = 6,     /* bridge_close was called in a callback, or threads have not ended in time */
    BRIDGE_FAILED = 7,   /* any other failure; bridge_error describes it */
    BRIDGE_STACK = 8     /* the thread has less than BRIDGE_STACK_SIZE bytes of stack left */
} bridge_status;

/* The bytes of stack that a calling thread must have left; bridge_free needs less. */
enum { BRIDGE_STACK_SIZE = 256 * 1024 };

/* The payload of a request.

   release == NULL: the bytes are copied. The caller may reuse them when the function returns.

   release != NULL: the bytes are not copied. They must stay valid and unchanged until the library
   calls release(context), which happens exactly once, even if the request is refused. The call
   comes from whichever thread drops the last reference, possibly long after the reply: a handler
   may keep an array. release must return quickly and must not call this library. If `data` is
   aligned to 64 bytes, arrays in the request are not copied either. */
typedef struct bridge_request {
    const void *data;
    size_t size;
    void (*release)(void *context);
    void *context;
} bridge_request;

/* Bytes that the holder of this struct owns and frees with bridge_free. All fields are zero if there
   are no bytes. `owner` is private to the library. */
typedef struct bridge_bytes {
    const void *data;
    size_t size;
    void *owner;
} bridge_bytes;

typedef enum bridge_kind {
    BRIDGE_REPLY = 0,    /* the reply: exactly one, and the last message of a call */
    BRIDGE_EVENT = 1,    /* an event of a request with "stream": true, or a line of the log */
    BRIDGE_HOST_CALL = 2 /* a call into the host, which answers it by sending another request */
} bridge_kind;

/* A function that receives messages.

   Thread: the thread of bridge_submit, before bridge_submit returns, or a thread of the library. The
   GIL is not held.

   Restrictions: it may call every function but bridge_close. Its call and its thread make no
   progress until it returns. It must therefore not wait forever for a call that needs the last free
   thread of the handle, or for a deadline that is reported on its own thread.

   Memory: the library frees `bytes` after the callback. To keep them, copy the struct and set
   *bytes to zeros; the copy is then freed with bridge_free. */
typedef void (*bridge_callback)(void *context, bridge_kind kind, bridge_bytes *bytes);

/* Return the version of the library, for example "1.2.3". */
BRIDGE_API const char *bridge_version(void);

/* Open a handle, and start Python if it does not run. Return NULL on failure.

   python: the interpreter of an environment that has the package bridge, the environment's
   directory, or a Python home. NULL: $BRIDGE_PYTHON, $VIRTUAL_ENV, or the default that was set when
   the library was built. If Python already runs in this process, it is used, and `python` must be
   NULL or the value of the first bridge_open.

   options: a JSON object; NULL means {}. "adapter" is "dspy", "echo" or "module:attribute"; "path" is
   a list of directories in which to find the module. The other keys are the flags of a
   worker with _ in their names: mode, worker_id, protocol, threads, queue, queue_bytes, queue_target,
   waiting, stuck_after, max_frame, max_values, grace, api_bases, allow_urls, api_key_envs,
   programs, store, state_dir, allow_code_execution, max_sessions, session_ttl, session_programs,
   session_bytes, telemetry, log_level. max_memory and max_cpu are refused: the process is the host's. */
BRIDGE_API bridge *bridge_open(const char *python, const char *options);

/* Send a request and wait for its reply.

   reply: receives the bytes of the reply, which the caller frees with bridge_free. It is set to zeros
   if the call fails, or if the payload gets no reply (an answer to a call into the host).

   timeout_ms: milliseconds after which the call is ended and the reply is `deadline_exceeded`;
   negative for no timeout. Time spent waiting for the inline handler of another call is not counted.

   Events and calls into the host go to the listener of the handle. */
BRIDGE_API int bridge_call(bridge *handle, bridge_request request, int64_t timeout_ms,
                           bridge_bytes *reply);

/* Send a request without waiting. Its messages go to `callback`: events and calls into the host, and
   at last one BRIDGE_REPLY, with zeros if the payload gets no reply. If the function fails, the
   callback is not called.

   call: NULL, or receives the number of the call for bridge_cancel. It is written atomically before
   the request is sent, so that another thread can read it atomically and cancel a bridge_submit
   that has not returned. */
BRIDGE_API int bridge_submit(bridge *handle, bridge_request request, bridge_callback callback,
                             void *context, uint64_t *call);

/* Cancel a call, whose reply is then `cancelled`. Return BRIDGE_OK also if the call has ended. */
BRIDGE_API int bridge_cancel(bridge *handle, uint64_t call);

/* Set the listener of a handle, or remove it with NULL. It receives the events and host calls of
   bridge_call, and log lines after a `hello` that offers logs. The log lines of the whole process
   go to the handle that has sent the last such `hello`.

   The previous listener may still run when this function returns. */
BRIDGE_API int bridge_listen(bridge *handle, bridge_callback callback, void *context);

/* Free bytes and set the struct to zeros. Do nothing for NULL or zeros. May be called after
   bridge_close. */
BRIDGE_API void bridge_free(bridge_bytes *bytes);

/* Close a handle. Ask open calls to stop, and answer `cancelled` to those that have not replied
   within the option `grace` (seconds, default 2). Then wait for the handle's threads and callbacks
   to end.

   BRIDGE_OK: no callback of the handle runs, and none will.
   BRIDGE_BUSY: the handle is closed, but a handler or a callback has not returned within a second
   period of `grace` (at least one second).

   The memory of a handle is never freed, so later calls with it return BRIDGE_CLOSED. */
BRIDGE_API int bridge_close(bridge *handle);

/* Return the message and the bridge_status of the last function that failed on this thread. The
   message is one line, valid until another function fails on this thread. */
BRIDGE_API const char *bridge_error(void);
BRIDGE_API int bridge_error_code(void);

/* Return a request for a NUL-terminated text, which will be copied. */
static inline bridge_request bridge_text(const char *text) {
    bridge_request request = {text, text ? strlen(text) : 0, 0, 0};
    return request;
}

#ifdef __cplusplus
}
#endif

#endif
