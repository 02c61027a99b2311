// bridge.h for C++17: handles and bytes that free themselves, exceptions for errors.

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

/// What a function of bridge.h failed with.
class Error : public std::runtime_error {
  public:
    Error() : std::runtime_error(bridge_error()), status(bridge_status(bridge_error_code())) {}
    const bridge_status status;
};

/// Bytes of the library's, freed at the end of their scope.
class Bytes {
  public:
    Bytes() = default;
    /// Takes them: zeros are left in `bytes`.
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

/// A request: text that is copied, or a string that is handed over without a copy.
class Request {
  public:
    Request(std::string_view text) : request_{text.data(), text.size(), nullptr, nullptr} {}
    Request(const std::string &text) : Request(std::string_view(text)) {}
    Request(const char *text) : Request(std::string_view(text)) {}
    static Request owning(std::string text) {
        auto *kept = new std::string(std::move(text));
        Request request{std::string_view(*kept)};
        request.request_.context = kept;
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
    /// For the library, which releases it from then on.
    bridge_request take() { return std::exchange(request_, {}); }

  private:
    bridge_request request_{};
};

/// A handle, closed at the end of its scope. See bridge.h for what its functions do.
class Bridge {
  public:
    /// Called as a bridge_callback is; what it throws ends the process.
    using Callback = std::function<void(bridge_kind, Bytes)>;

    explicit Bridge(const std::string &options = "", const char *python = nullptr)
        : handle_(bridge_open(python, options.c_str())) {
        if (!handle_) throw Error();
    }
    Bridge(const Bridge &) = delete;
    Bridge &operator=(const Bridge &) = delete;
    ~Bridge() {
        if (bridge_close(handle_) == BRIDGE_OK) has_ended_ = true;
        if (!has_ended_) static_cast<void>(listeners_.release());  // one may still run
    }

    Bytes call(Request request, std::optional<std::chrono::milliseconds> timeout = {}) {
        bridge_bytes reply;
        check(bridge_call(handle_, request.take(), timeout ? timeout->count() : -1, &reply));
        return Bytes(&reply);
    }

    /// The number to cancel it by. An empty `callback` is BRIDGE_INVALID.
    std::uint64_t submit(Request request, Callback callback) {
        if (!callback) check(bridge_submit(handle_, request.take(), nullptr, nullptr, nullptr));
        auto kept = std::make_unique<Callback>(std::move(callback));
        std::uint64_t number = 0;
        check(bridge_submit(handle_, request.take(), once, kept.get(), &number));
        static_cast<void>(kept.release());  // `once` has deleted it, or will
        return number;
    }

    void cancel(std::uint64_t number) { check(bridge_cancel(handle_, number)); }

    /// An empty `callback`: nobody.
    void listen(Callback callback) {
        if (!callback) return check(bridge_listen(handle_, nullptr, nullptr));
        const std::lock_guard<std::mutex> lock(listening_);
        listeners_->push_back(std::move(callback));
        check(bridge_listen(handle_, many, &listeners_->back()));
    }

    /// Closes now, to learn how that went; what is called afterwards throws.
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
    bool has_ended_ = false;  // a close was OK: nothing runs any more
    std::mutex listening_;
    // Earlier ones stay: they may be running when another takes their place.
    std::unique_ptr<std::deque<Callback>> listeners_ = std::make_unique<std::deque<Callback>>();
};

}  // namespace libbridge

#endif
