/* libbridge: starts Python, registers foreign threads with it, and waits for replies. Requests are
   handled in the package: bridge/_embed.pyx and bridge/embed.py. */

#define _GNU_SOURCE  /* dladdr, RTLD_NOLOAD */
#include "embed.h"

#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

struct bridge {
    PyObject *handle;         /* bridge.embed.Handle; NULL once it is closed. Needs the GIL */
    PyObject *endpoint;       /* NULL once it is closed. Written with the GIL, atomically */
    const bridge_embed *embed;
    uint64_t calls;           /* the number of the last call. Needs the GIL */
    int running;              /* running callbacks, and submits, which may call one. Atomic */
    struct bridge *next;
};

/* Handles are never freed, so that a call after bridge_close is an error and not a crash. */
static bridge *handles;

static pthread_mutex_t starting = PTHREAD_MUTEX_INITIALIZER;  /* guards the next three */
static int is_started;
static char start_failure[512];
static char started_with[4096];

static int is_ours;    /* this library has started Python, not the host */
static int is_forked;  /* this process is a fork of one that has started Python */
static pthread_key_t thread_end;

static _Thread_local struct {
    int code;
    char text[1024];
} last;
static _Thread_local int callbacks;  /* the nested callbacks that run on this thread */

static int fail(int code, const char *format, ...) __attribute__((format(printf, 2, 3)));

static int fail(int code, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(last.text, sizeof last.text, format, arguments);
    va_end(arguments);
    return last.code = code;
}

const char *bridge_error(void) { return last.text; }

int bridge_error_code(void) { return last.code; }

const char *bridge_version(void) { return BRIDGE_VERSION; }

/* Return the bytes of stack that this thread has left, or SIZE_MAX on a stack that the system did not
   allocate, such as that of a coroutine. */
static size_t stack_left(void) {
    static _Thread_local struct { char *begin, *end; } stack;
    char here;
#ifdef __APPLE__
    if (stack.end == NULL) {
        stack.end = pthread_get_stackaddr_np(pthread_self());
        stack.begin = stack.end - pthread_get_stacksize_np(pthread_self());
    }
#else
    pthread_attr_t attributes;
    void *begin;
    size_t size, guard;
    if (stack.end == NULL && !pthread_getattr_np(pthread_self(), &attributes)) {
        if (!pthread_attr_getstack(&attributes, &begin, &size) &&
            !pthread_attr_getguardsize(&attributes, &guard)) {
            stack.begin = (char *)begin + guard;
            stack.end = (char *)begin + size;
        }
        pthread_attr_destroy(&attributes);
    }
#endif
    return &here > stack.begin && &here < stack.end ? (size_t)(&here - stack.begin) : SIZE_MAX;
}

/* Decoding a request nested 512 levels deep, the limit, takes this much of the caller's stack. */
static int has_stack(void) {
    size_t left = stack_left();
    if (left >= BRIDGE_STACK_SIZE) return 1;
    fail(BRIDGE_STACK, "this thread has %zu KiB of stack left, and needs %d", left / 1024,
         BRIDGE_STACK_SIZE / 1024);
    return 0;
}

/* The GIL. A thread that Python does not know gets a thread state at its first call and keeps it until
   the thread ends: creating one for each call would cost more than a ping. */

static PyThreadState *current_state(void) {
#if PY_VERSION_HEX >= 0x030d0000
    return PyThreadState_GetUnchecked();
#else
    return _PyThreadState_UncheckedGet();
#endif
}

static void take_gil(void) {
    PyThreadState *state = PyGILState_GetThisThreadState();
    if (state) {
        PyEval_RestoreThread(state);
    } else {
        PyGILState_Ensure();
        pthread_setspecific(thread_end, PyGILState_GetThisThreadState());
    }
}

static void drop_gil(void) { PyEval_SaveThread(); }

/* Release the GIL if the caller holds it. Return the state for `restore_gil`. */
static PyThreadState *release_gil(void) {
    PyThreadState *state = is_forked ? NULL : PyGILState_GetThisThreadState();
    return state && state == current_state() ? PyEval_SaveThread() : NULL;
}

static void restore_gil(PyThreadState *held) {
    if (held) PyEval_RestoreThread(held);
}

/* Delete the thread state of a thread that ends. Python's own thread-specific data may be gone
   already, so the state comes from `thread_end`. */
static void at_thread_end(void *state) {
    if (is_forked || !Py_IsInitialized()) return;
    PyEval_RestoreThread(state);
    PyThreadState_Clear(state);
    PyThreadState_DeleteCurrent();
}

/* Called in the child. If another thread was starting Python during the fork, `starting` stays locked
   for ever in the child, which then counts as forked too. */
static void at_fork(void) {
    is_forked = is_started || pthread_mutex_trylock(&starting);
    if (!is_forked) pthread_mutex_unlock(&starting);
}

static int preparation;

static void prepare(void) {
    preparation = pthread_key_create(&thread_end, at_thread_end);
    if (!preparation) preparation = pthread_atfork(NULL, NULL, at_fork);
}

/* The start of Python. */

/* Make the Python exception the last error, and clear it. A ValueError means invalid options. */
static int fail_with_python(int code, const char *what) {
    PyObject *error, *text;
    const char *message = NULL;
#if PY_VERSION_HEX >= 0x030c0000
    error = PyErr_GetRaisedException();
#else
    PyObject *type, *traceback;
    PyErr_Fetch(&type, &error, &traceback);
    PyErr_NormalizeException(&type, &error, &traceback);
    Py_XDECREF(type);
    Py_XDECREF(traceback);
#endif
    if (error == NULL) return fail(code, "%sa failure without an exception", what);
    text = PyObject_Str(error);
    if (text) message = PyUnicode_AsUTF8(text);
    if (message == NULL) message = "its text cannot be read";
    if (PyObject_IsInstance(error, PyExc_ValueError) == 1) {
        fail(code = BRIDGE_INVALID, "%s", message);
    } else {
        if (PyObject_IsInstance(error, PyExc_MemoryError) == 1) code = BRIDGE_MEMORY;
        fail(code, "%s%s: %s", what, Py_TYPE(error)->tp_name, message);
    }
    Py_XDECREF(text);
    Py_DECREF(error);
    PyErr_Clear();
    return code;
}

static int exists(const char *directory, const char *name, char *path, size_t size) {
    int length = snprintf(path, size, "%s/%s", directory, name);
    return length > 0 && (size_t)length < size && access(path, F_OK) == 0;
}

/* Return the Python to start: the caller's, or else that of the environment, or NULL. */
static const char *chosen_python(const char *python) {
    const char *candidates[] = {python, getenv("BRIDGE_PYTHON"), getenv("VIRTUAL_ENV"),
                            BRIDGE_DEFAULT_PYTHON};
    size_t i;
    for (i = 0; i < sizeof candidates / sizeof *candidates; i++) {
        if (candidates[i] && *candidates[i]) return candidates[i];
    }
    return NULL;
}

/* Return whether the environment of `python` has the Python version that this library was built with;
   otherwise its packages would not be found. True if there is no pyvenv.cfg or no version in it. */
static int is_of_our_version(const char *python, int is_directory) {
    char path[4200], line[256];
    const char *slash = strrchr(python, '/');
    int major, minor, matches = 1;
    FILE *file;
    snprintf(path, sizeof path, is_directory ? "%.*s/pyvenv.cfg" : "%.*s/../pyvenv.cfg",
             (int)(is_directory ? strlen(python) : slash ? (size_t)(slash - python) : 0), python);
    file = fopen(path, "re");
    while (file && fgets(line, sizeof line, file)) {
        if (sscanf(line, "version = %d.%d", &major, &minor) == 2 ||
            sscanf(line, "version_info = %d.%d", &major, &minor) == 2) {
            matches = major == PY_MAJOR_VERSION && minor == PY_MINOR_VERSION;
            break;
        }
    }
    if (file) fclose(file);
    if (!matches) {
        fail(BRIDGE_PYTHON, "%s is Python %d.%d, but this library was built with %d.%d", python,
             major, minor, PY_MAJOR_VERSION, PY_MINOR_VERSION);
    }
    return matches;
}

/* Set `config` to the Python at `python`: an executable, an environment, or a home. Return 0, or a
   bridge_status. */
static int set_python(PyConfig *config, const char *python, PyStatus *status) {
    char path[4096];
    struct stat info;
    char library[64];
    *status = PyStatus_Ok();
    if (python == NULL) return 0;
    if (stat(python, &info) < 0) {
        return fail(BRIDGE_PYTHON, "no Python at %s: %s", python, strerror(errno));
    }
    if (!is_of_our_version(python, S_ISDIR(info.st_mode))) return last.code;
    if (!S_ISDIR(info.st_mode)) {
        if (access(python, X_OK) < 0) return fail(BRIDGE_PYTHON, "%s is not executable", python);
        *status = PyConfig_SetBytesString(config, &config->executable, python);
        return 0;
    }
    snprintf(library, sizeof library, "lib/python%d.%d/encodings", PY_MAJOR_VERSION,
             PY_MINOR_VERSION);
    if (exists(python, "pyvenv.cfg", path, sizeof path)) {
        if (!exists(python, "bin/python", path, sizeof path)) {
            return fail(BRIDGE_PYTHON, "the environment %s has no bin/python", python);
        }
        *status = PyConfig_SetBytesString(config, &config->executable, path);
    } else if (exists(python, library, path, sizeof path)) {
        *status = PyConfig_SetBytesString(config, &config->home, python);
    } else {
        return fail(BRIDGE_PYTHON, "%s is not a home of Python %d.%d: it has no %s", python,
                    PY_MAJOR_VERSION, PY_MINOR_VERSION, library);
    }
    return 0;
}

/* Make Python's symbols global: extension modules need them, and a host that has loaded this library
   with RTLD_LOCAL has hidden them. */
static void show_symbols(void) {
    Dl_info info;
    union { PyStatus (*function)(const PyConfig *); void *address; } start = {
        Py_InitializeFromConfig};
    if (dladdr(start.address, &info) && info.dli_fname) {
        dlopen(info.dli_fname, RTLD_NOW | RTLD_GLOBAL | RTLD_NOLOAD);
    }
}

/* Start Python in its isolated configuration: no signal handlers, no change of locale, no PYTHON*
   variables, no user site directory. A failure is stored in `start_failure` and is final: a Python
   that has started in part cannot be started again. */
static int start_python(const char *python) {
    PyPreConfig before;
    PyConfig config;
    PyStatus status;
    struct sigaction interrupt;
    int code;
    PyPreConfig_InitIsolatedConfig(&before);
    before.utf8_mode = 1;
#ifdef BRIDGE_SANITIZED
    before.allocator = PYMEM_ALLOCATOR_MALLOC;  /* the sanitizer cannot see Python's arenas */
#endif
    PyConfig_InitIsolatedConfig(&config);
    show_symbols();
    sigaction(SIGINT, NULL, &interrupt);
    status = Py_PreInitialize(&before);
    if (PyStatus_Exception(status)) goto failed;
    code = set_python(&config, python, &status);
    if (code) {
        PyConfig_Clear(&config);
        return code;
    }
    if (PyStatus_Exception(status)) goto failed;
    status = Py_InitializeFromConfig(&config);
    if (PyStatus_Exception(status)) goto failed;
    PyConfig_Clear(&config);
    /* The first import of _signal sets a handler of SIGINT despite the configuration, and a .pth file
       of the environment may have imported it. Import it now and restore the host's handler. */
    Py_XDECREF(PyImport_ImportModule("_signal"));
    PyErr_Clear();
    sigaction(SIGINT, &interrupt, NULL);
    return BRIDGE_OK;
failed:
    PyConfig_Clear(&config);
    snprintf(start_failure, sizeof start_failure,
             "Python %d.%d does not start%s%s (%s); restart this process to try another",
             PY_MAJOR_VERSION, PY_MINOR_VERSION, python ? " at " : "", python ? python : "",
             status.err_msg ? status.err_msg : "no reason given");
    return fail(BRIDGE_PYTHON, "%s", start_failure);
}

/* Start Python unless it runs. Called with `starting` locked and without the GIL; returns without it. */
static int ensure_python(const char *python) {
    int code;
    if (is_started) {
        if (python && is_ours && strcmp(python, started_with)) {
            return fail(BRIDGE_INVALID, "Python already runs in this process, from %s",
                        started_with);
        }
        return BRIDGE_OK;
    }
    if (*start_failure) return fail(BRIDGE_PYTHON, "%s", start_failure);
    if (Py_IsInitialized()) {
        show_symbols();
    } else {
        python = chosen_python(python);
        code = start_python(python);
        if (code) return code;
        snprintf(started_with, sizeof started_with, "%s", python ? python : "");
        is_ours = 1;
        PyEval_SaveThread();
    }
    is_started = 1;
    return BRIDGE_OK;
}

static void enter(bridge *handle) { __atomic_add_fetch(&handle->running, 1, __ATOMIC_SEQ_CST); }

static void leave(bridge *handle) { __atomic_sub_fetch(&handle->running, 1, __ATOMIC_SEQ_CST); }

static void run(bridge_callback callback, void *context, bridge_kind kind, bridge_bytes *bytes) {
    callbacks++;
    callback(context, kind, bytes);
    callbacks--;
}

/* Call a callback for the package. Called with the GIL, so that bridge_close, which holds it when it
   looks, sees this callback counted. */
static void run_for(void *handle, bridge_callback callback, void *context, bridge_kind kind,
                    bridge_bytes *bytes) {
    PyThreadState *held;
    enter(handle);
    held = PyEval_SaveThread();
    run(callback, context, kind, bytes);
    PyEval_RestoreThread(held);
    leave(handle);
}

/* Open the Python side of a handle. Needs the GIL. Return 0, or a bridge_status. */
static int open_handle(bridge *handle, const char *options) {
    static int is_prepared;
    PyObject *module, *done;
    char what[256];
    module = PyImport_ImportModule("bridge.embed");
    if (module == NULL) {
        snprintf(what, sizeof what, "Python %d.%d at %.180s cannot import the package bridge: ",
                 PY_MAJOR_VERSION, PY_MINOR_VERSION, is_ours ? started_with : "the host's");
        return fail_with_python(BRIDGE_PYTHON, what);
    }
    handle->embed = PyCapsule_Import(BRIDGE_EMBED_CAPSULE, 0);
    if (handle->embed == NULL) {
        Py_DECREF(module);
        return fail_with_python(BRIDGE_PYTHON, "the package and this library have different versions: ");
    }
    if (is_ours && !is_prepared) {
        is_prepared = 1;
        done = PyObject_CallMethod(module, "prepare", NULL);
        if (done == NULL) PyErr_Clear();
        Py_XDECREF(done);
    }
    handle->handle = PyObject_CallMethod(module, "open", "yi", options ? options : "", is_ours);
    Py_DECREF(module);
    if (handle->handle == NULL) return fail_with_python(BRIDGE_FAILED, "");
    handle->endpoint = PyObject_GetAttrString(handle->handle, "endpoint");
    if (handle->endpoint == NULL || handle->embed->attach(handle->endpoint, run_for, handle) < 0) {
        Py_CLEAR(handle->endpoint);
        Py_CLEAR(handle->handle);
        return fail_with_python(BRIDGE_FAILED, "");
    }
    handle->next = handles;
    handles = handle;
    return BRIDGE_OK;
}

bridge *bridge_open(const char *python, const char *options) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    PyThreadState *held;
    bridge *handle;
    int code;
    if (!has_stack()) return NULL;
    pthread_once(&once, prepare);
    if (preparation) {
        fail(BRIDGE_MEMORY, "no memory for another thread key");
        return NULL;
    }
    if (is_forked) {
        fail(BRIDGE_FORKED, "this process is a fork of one that has started Python");
        return NULL;
    }
    handle = calloc(1, sizeof *handle);
    if (handle == NULL) {
        fail(BRIDGE_MEMORY, "no memory for a handle");
        return NULL;
    }
    held = release_gil();
    pthread_mutex_lock(&starting);
    code = ensure_python(python);
    pthread_mutex_unlock(&starting);
    if (!code) {
        take_gil();
        code = open_handle(handle, options);
        drop_gil();
    }
    if (code) {
        free(handle);
        handle = NULL;
    }
    restore_gil(held);
    return handle;
}

/* Calls. */

static void drop(const bridge_request *request) {
    if (request->release) request->release(request->context);
}

/* An empty payload is a heartbeat, which gets an empty reply without Python. */
static int is_heartbeat(const bridge_request *request) {
    if (request->size) return 0;
    drop(request);
    return 1;
}

static int is_open(const bridge *handle) {
    return __atomic_load_n(&handle->endpoint, __ATOMIC_SEQ_CST) != NULL;
}

/* Return 0 if a request can be sent with `handle`; else drop it and return a bridge_status. */
static int accepts(const bridge *handle, const bridge_request *request) {
    int code = BRIDGE_OK;
    if (handle == NULL) {
        code = fail(BRIDGE_INVALID, "the handle is NULL");
    } else if (request->data == NULL && request->size) {
        code = fail(BRIDGE_INVALID, "the request's data is NULL");
    } else if (is_forked) {
        code = fail(BRIDGE_FORKED, "this process is a fork of the one that opened the handle");
    } else if (!is_open(handle)) {
        code = fail(BRIDGE_CLOSED, "the handle is closed");
    } else if (request->size && !has_stack()) {
        code = BRIDGE_STACK;
    }
    if (code) drop(request);
    return code;
}

/* Pass a request to the package. Return BRIDGE_REPLIED or BRIDGE_LATER, or -1 and set the last
   error. */
static int answer(bridge *handle, const bridge_request *request, uint64_t *number,
                  bridge_callback callback, void *context, int streams, bridge_bytes *reply) {
    PyObject *endpoint;
    int outcome = BRIDGE_ENDED;
    take_gil();
    endpoint = handle->endpoint;
    if (endpoint) {
        uint64_t call = ++handle->calls;
        __atomic_store_n(number, call, __ATOMIC_RELEASE);  /* another thread may read it */
        Py_INCREF(endpoint);
        outcome = handle->embed->answer(endpoint, request, call, callback, context, streams, reply);
        Py_DECREF(endpoint);
        if (outcome < 0) fail_with_python(BRIDGE_FAILED, "");
    } else {
        drop(request);
    }
    drop_gil();
    if (outcome != BRIDGE_ENDED) return outcome;
    fail(BRIDGE_CLOSED, "the handle is closed");
    return -1;
}

typedef struct {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    int is_done;
    bridge_bytes reply;
} waiting;

static void wake(void *context, bridge_kind kind, bridge_bytes *bytes) {
    waiting *waiting = context;
    (void)kind;
    pthread_mutex_lock(&waiting->lock);
    waiting->reply = *bytes;
    memset(bytes, 0, sizeof *bytes);
    waiting->is_done = 1;
    pthread_cond_signal(&waiting->changed);
    pthread_mutex_unlock(&waiting->lock);
}

static void start_waiting(waiting *waiting) {
    pthread_condattr_t attributes;
    memset(waiting, 0, sizeof *waiting);
    pthread_mutex_init(&waiting->lock, NULL);
    pthread_condattr_init(&attributes);
#ifndef __APPLE__
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
#endif
    pthread_cond_init(&waiting->changed, &attributes);
    pthread_condattr_destroy(&attributes);
}

static void end_waiting(waiting *waiting) {
    pthread_cond_destroy(&waiting->changed);
    pthread_mutex_destroy(&waiting->lock);
}

/* Wait for the reply until `until`, or without a limit if it is NULL. Return whether it has come. */
static int wait_until(waiting *waiting, const struct timespec *until) {
    int error = 0, is_done;
    pthread_mutex_lock(&waiting->lock);
    while (!waiting->is_done && error != ETIMEDOUT) {
        error = until ? pthread_cond_timedwait(&waiting->changed, &waiting->lock, until)
                      : pthread_cond_wait(&waiting->changed, &waiting->lock);
    }
    is_done = waiting->is_done;
    pthread_mutex_unlock(&waiting->lock);
    return is_done;
}

static struct timespec in_ms(int64_t milliseconds) {
    struct timespec until;
    const int64_t most = INT64_C(86400000);  /* a day, as in the protocol */
    if (milliseconds > most) milliseconds = most;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec += (time_t)(milliseconds / 1000);
    until.tv_nsec += (long)(milliseconds % 1000) * 1000000;
    if (until.tv_nsec >= 1000000000) {
        until.tv_sec++;
        until.tv_nsec -= 1000000000;
    }
    return until;
}

/* End a call by `method(number[, timeout_ms])` of the Python handle. A closed handle has no calls. */
static int end_call(bridge *handle, const char *method, uint64_t number, int64_t timeout_ms) {
    PyObject *python, *done;
    int code = BRIDGE_OK;
    take_gil();
    python = handle->handle;
    if (python) {
        Py_INCREF(python);
        done = timeout_ms < 0 ? PyObject_CallMethod(python, method, "K", (unsigned long long)number)
                              : PyObject_CallMethod(python, method, "KL", (unsigned long long)number,
                                                    (long long)timeout_ms);
        if (done == NULL) code = fail_with_python(BRIDGE_FAILED, "");
        Py_XDECREF(done);
        Py_DECREF(python);
    } else {
        code = fail(BRIDGE_CLOSED, "the handle is closed");
    }
    drop_gil();
    return code;
}

int bridge_call(bridge *handle, bridge_request request, int64_t timeout_ms, bridge_bytes *reply) {
    PyThreadState *held;
    waiting waiting;
    struct timespec until;
    uint64_t number;
    int outcome, code = accepts(handle, &request);
    if (reply == NULL) {
        if (!code) drop(&request);
        return fail(BRIDGE_INVALID, "the reply is NULL");
    }
    memset(reply, 0, sizeof *reply);
    if (code || is_heartbeat(&request)) return code;
    held = release_gil();
    start_waiting(&waiting);
    if (timeout_ms >= 0) until = in_ms(timeout_ms);
    outcome = answer(handle, &request, &number, wake, &waiting, 0, reply);
    if (outcome == BRIDGE_LATER) {
        if (timeout_ms >= 0 && !wait_until(&waiting, &until)) {
            end_call(handle, "late", number, timeout_ms);
        }
        wait_until(&waiting, NULL);
        *reply = waiting.reply;
    }
    end_waiting(&waiting);
    restore_gil(held);
    return outcome < 0 ? last.code : BRIDGE_OK;
}

/* bridge_submit, while the handle counts this call as running. */
static int submit(bridge *handle, bridge_request request, bridge_callback callback, void *context,
                  uint64_t *call) {
    PyThreadState *held;
    bridge_bytes reply = {NULL, 0, NULL};
    uint64_t number;
    int outcome, code = accepts(handle, &request);
    if (callback == NULL) {
        if (!code) drop(&request);
        return fail(BRIDGE_INVALID, "the callback is NULL");
    }
    if (code) return code;
    if (is_heartbeat(&request)) {
        if (call) *call = 0;  /* nothing to cancel */
        run(callback, context, BRIDGE_REPLY, &reply);
        return BRIDGE_OK;
    }
    held = release_gil();
    outcome = answer(handle, &request, call ? call : &number, callback, context, 1, &reply);
    if (outcome == BRIDGE_REPLIED) {
        run(callback, context, BRIDGE_REPLY, &reply);
        bridge_free(&reply);
    }
    restore_gil(held);
    return outcome < 0 ? last.code : BRIDGE_OK;
}

int bridge_submit(bridge *handle, bridge_request request, bridge_callback callback, void *context,
                  uint64_t *call) {
    int code;
    if (handle) enter(handle);
    code = submit(handle, request, callback, context, call);
    if (handle) leave(handle);
    return code;
}

/* Return 0 if `handle` can be used on this thread, else a bridge_status. */
static int check(const bridge *handle) {
    if (handle == NULL) return fail(BRIDGE_INVALID, "the handle is NULL");
    if (is_forked) {
        return fail(BRIDGE_FORKED, "this process is a fork of the one that opened the handle");
    }
    return has_stack() ? BRIDGE_OK : BRIDGE_STACK;
}

int bridge_cancel(bridge *handle, uint64_t call) {
    PyThreadState *held;
    int code = check(handle);
    if (code) return code;
    held = release_gil();
    code = end_call(handle, "cancel", call, -1);
    restore_gil(held);
    return code;
}

int bridge_listen(bridge *handle, bridge_callback callback, void *context) {
    PyThreadState *held;
    int code = check(handle);
    if (code) return code;
    held = release_gil();
    take_gil();
    if (handle->endpoint == NULL) {
        code = fail(BRIDGE_CLOSED, "the handle is closed");
    } else {
        int ended = handle->embed->listen(handle->endpoint, callback, context);
        if (ended < 0) code = fail_with_python(BRIDGE_FAILED, "");
        if (ended > 0) code = fail(BRIDGE_CLOSED, "the handle was shut down");
    }
    drop_gil();
    restore_gil(held);
    return code;
}

void bridge_free(bridge_bytes *bytes) {
    PyThreadState *held;
    bridge_bytes freed;
    if (bytes == NULL) return;
    freed = *bytes;
    memset(bytes, 0, sizeof *bytes);
    if (freed.owner == NULL) {
        free((void *)freed.data);
    } else if (!is_forked) {
        held = release_gil();
        take_gil();
        Py_DECREF((PyObject *)freed.owner);
        drop_gil();
        restore_gil(held);
    }
}

static int is_running(const bridge *handle) {
    return __atomic_load_n(&handle->running, __ATOMIC_SEQ_CST);
}

/* Stop the calls, threads and callbacks of a closed handle. Needs the GIL. */
static int end_handle(bridge *handle, PyObject *python, PyObject *endpoint) {
    PyObject *done;
    long left, waits;
    done = PyObject_CallMethod(python, "close", NULL);
    left = done ? PyLong_AsLong(done) : -1;
    Py_XDECREF(done);
    handle->embed->listen(endpoint, NULL, NULL);
    done = left ? NULL : PyObject_GetAttrString(python, "patience_ms");
    waits = done ? PyLong_AsLong(done) : 0;
    Py_XDECREF(done);
    if (PyErr_Occurred()) return fail_with_python(BRIDGE_FAILED, "");
    while (is_running(handle) && waits-- > 0) {
        drop_gil();
        usleep(1000);
        take_gil();
    }
    if (left == 0 && !is_running(handle)) return BRIDGE_OK;
    return fail(BRIDGE_BUSY,
                "the handle is closed; %ld of its threads and %d callbacks have not returned", left,
                is_running(handle));
}

int bridge_close(bridge *handle) {
    PyThreadState *held;
    PyObject *python, *endpoint;
    int code = check(handle);
    if (code) return code;
    if (callbacks) return fail(BRIDGE_BUSY, "a callback cannot close a handle");
    held = release_gil();
    take_gil();
    python = handle->handle;
    if (python) {
        endpoint = handle->endpoint;
        handle->handle = NULL;
        __atomic_store_n(&handle->endpoint, NULL, __ATOMIC_SEQ_CST);
        code = end_handle(handle, python, endpoint);
        Py_DECREF(endpoint);
        Py_DECREF(python);
    } else {
        code = fail(BRIDGE_CLOSED, "the handle is closed already");
    }
    drop_gil();
    restore_gil(held);
    return code;
}
