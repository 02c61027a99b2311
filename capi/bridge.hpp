// C++17 wrapper of bridge.h: RAII for handles and bytes, and exceptions for errors.

#ifndef BRIDGE_HPP
#define BRIDGE_HPP

#include <chrono>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>

#include "bridge.h"

namespace libbridge {

/// The error of a function of bridge.h: its message and its status.
class Error : public std::runtime_error {
  public:
    Error() : std::runtime_error(bridge_error()), status(bridge_status(bridge_error_code())) {}
    const bridge_status status;
};

/// Bytes of the library, freed by the destructor.
class Bytes {
  public:
    Bytes() = default;
    /// Take ownership of `bytes` and set them to zeros.
    explicit Bytes(bridge_bytes *bytes) : bytes_(std::exchange(*bytes, {})) {}
    Bytes(Bytes &&other) noexcept : bytes_(std::exchange(other.bytes_, {})) {}
    Bytes &operator=(Bytes &&other) noexcept {
        std::swap(bytes_, other.bytes_);
        return *this;
    }
    ~Bytes() { bridge_free(&bytes_); }

    std::string_view view() const {
        return {static_cast<const char *>(bytes_.data), bytes_.size};
    }

  private:
    bridge_bytes bytes_{};
};

/// A request: a text that is copied when it is sent, or a string that it owns and that is not copied.
class Request {
  public:
    Request(std::string_view text) : request_{text.data(), text.size(), nullptr, nullptr} {}
    Request(const std::string &text) : Request(std::string_view(text)) {}
    Request(const char *text) : Request(std::string_view(text)) {}
    static Request owning(std::string text) {
        auto *owned = new std::string(std::move(text));
        Request request{std::string_view(*owned)};
        request.request_.context = owned;
        request.request_.release = [](void *context) {
            delete static_cast<std::string *>(context);
        };
        return request;
    }
    Request(Request &&other) noexcept : request_(std::exchange(other.request_, {})) {}
    Request &operator=(Request &&) = delete;
    ~Request() {
        if (request_.release) request_.release(request_.context);
    }
    /// Pass ownership to the library, which calls `release`.
    bridge_request take() { return std::exchange(request_, {}); }

  private:
    bridge_request request_{};
};

/// A handle, closed by the destructor. bridge.h documents the functions.
class Bridge {
  public:
    /// A function that is called like a bridge_callback. An exception that leaves it ends the process.
    using Callback = std::function<void(bridge_kind, Bytes)>;

    explicit Bridge(const std::string &options = "", const char *python = nullptr)
        : handle_(bridge_open(python, options.c_str())) {
        if (!handle_) throw Error();
    }
    Bridge(const Bridge &) = delete;
    Bridge &operator=(const Bridge &) = delete;
    ~Bridge() {
        if (bridge_close(handle_) == BRIDGE_OK) has_ended_ = true;
        if (!has_ended_) static_cast<void>(listeners_.release());  // a callback may still run
    }

    Bytes call(Request request, std::optional<std::chrono::milliseconds> timeout = {}) {
        bridge_bytes reply;
        check(bridge_call(handle_, request.take(), timeout ? timeout->count() : -1, &reply));
        return Bytes(&reply);
    }

    /// Send a request and return its number for `cancel`. Throw BRIDGE_INVALID if `callback` is empty.
    std::uint64_t submit(Request request, Callback callback) {
        if (!callback) check(bridge_submit(handle_, request.take(), nullptr, nullptr, nullptr));
        auto owned = std::make_unique<Callback>(std::move(callback));
        std::uint64_t number = 0;
        check(bridge_submit(handle_, request.take(), once, owned.get(), &number));
        static_cast<void>(owned.release());  // `once` deletes it
        return number;
    }

    void cancel(std::uint64_t number) { check(bridge_cancel(handle_, number)); }

    /// Set the listener, or remove it if `callback` is empty.
    void listen(Callback callback) {
        if (!callback) return check(bridge_listen(handle_, nullptr, nullptr));
        const std::lock_guard<std::mutex> lock(listening_);
        listeners_->push_back(std::move(callback));
        check(bridge_listen(handle_, many, &listeners_->back()));
    }

    /// Close the handle, and throw if that fails. Every later call throws BRIDGE_CLOSED.
    void close() {
        check(bridge_close(handle_));
        has_ended_ = true;
    }

  private:
    static void check(int status) {
        if (status != BRIDGE_OK) throw Error();
    }
    static void many(void *context, bridge_kind kind, bridge_bytes *bytes) noexcept {
        (*static_cast<Callback *>(context))(kind, Bytes(bytes));
    }
    static void once(void *context, bridge_kind kind, bridge_bytes *bytes) noexcept {
        many(context, kind, bytes);
        if (kind == BRIDGE_REPLY) delete static_cast<Callback *>(context);
    }

    bridge *handle_;
    bool has_ended_ = false;  // a close has succeeded, so no callback runs
    std::mutex listening_;
    // Keeps replaced listeners, which may still be running.
    std::unique_ptr<std::deque<Callback>> listeners_ = std::make_unique<std::deque<Callback>>();
};

}  // namespace libbridge

#endif
