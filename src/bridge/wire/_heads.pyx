"""What a worker's message is, from its first bytes: a reply or an event, and of which request.

A receiver of many messages can pass them on undecoded. A worker writes `id` first and `success` or `event` second; a
message of any other shape is not recognized here and has to be decoded.
"""

from libc.stdint cimport int64_t

from bridge._framing cimport Frame


cdef extern from *:
    """
    #include <stdint.h>
    #include <string.h>

    enum { BRIDGE_REPLY_HEAD, BRIDGE_EVENT_HEAD, BRIDGE_LOG_HEAD, BRIDGE_OTHER_HEAD };

    /* Returns whether `p` begins with the bytes of the string literal, and moves it behind them. */
    #define BRIDGE_SKIP(p, end, literal) \\
        ((size_t)((end) - (p)) >= sizeof(literal) - 1 && memcmp(p, literal, sizeof(literal) - 1) == 0 \\
         && ((p) += sizeof(literal) - 1))

    static int64_t bridge_signed_be(const uint8_t *p, int size) {
        int64_t value = (int8_t)*p;
        while (--size) value = (int64_t)((uint64_t)value << 8 | *++p);
        return value;
    }

    /* Up to 18 digits, which an int64_t can hold. */
    static int bridge_json_id(const uint8_t **at, const uint8_t *end, int64_t *id) {
        const uint8_t *p = *at;
        int is_negative = p < end && *p == '-';
        int64_t value = 0;
        int digits = 0;
        p += is_negative;
        for (; p < end && *p >= '0' && *p <= '9'; p++) {
            if (++digits > 18) return 0;
            value = value * 10 + (*p - '0');
        }
        *at = p;
        *id = is_negative ? -value : value;
        return digits > 0;
    }

    static int bridge_json_head(const uint8_t *p, const uint8_t *end, int64_t *id) {
        if (!BRIDGE_SKIP(p, end, "{\\"id\\":") || !bridge_json_id(&p, end, id)) return BRIDGE_OTHER_HEAD;
        if (BRIDGE_SKIP(p, end, ",\\"success\\":")) return BRIDGE_REPLY_HEAD;
        if (BRIDGE_SKIP(p, end, ",\\"event\\":\\"log\\"")) return BRIDGE_LOG_HEAD;
        return BRIDGE_SKIP(p, end, ",\\"event\\":") ? BRIDGE_EVENT_HEAD : BRIDGE_OTHER_HEAD;
    }

    static int bridge_msgpack_id(const uint8_t **at, const uint8_t *end, int64_t *id) {
        const uint8_t *p = *at;
        uint8_t tag;
        int size;
        if (p == end) return 0;
        tag = *p++;
        if (tag < 0x80 || tag >= 0xe0) {
            *id = (int8_t)tag;
        } else {
            if (tag < 0xcc || tag > 0xd3) return 0;
            size = 1 << (tag & 3);  /* cc to cf: unsigned, d0 to d3: signed; of 1, 2, 4 and 8 bytes */
            if (end - p < size || (tag == 0xcf && *p & 0x80)) return 0;
            *id = bridge_signed_be(p, size);
            if (tag < 0xcf) *id &= (int64_t)(((uint64_t)1 << 8 * size) - 1);
            p += size;
        }
        *at = p;
        return 1;
    }

    static int bridge_msgpack_head(const uint8_t *p, const uint8_t *end, int64_t *id) {
        if (p == end || (*p & 0xf0) != 0x80) return BRIDGE_OTHER_HEAD;
        p++;
        if (!BRIDGE_SKIP(p, end, "\\xa2" "id") || !bridge_msgpack_id(&p, end, id)) return BRIDGE_OTHER_HEAD;
        if (BRIDGE_SKIP(p, end, "\\xa7" "success")) return BRIDGE_REPLY_HEAD;
        if (BRIDGE_SKIP(p, end, "\\xa5" "event" "\\xa3" "log")) return BRIDGE_LOG_HEAD;
        return BRIDGE_SKIP(p, end, "\\xa5" "event") ? BRIDGE_EVENT_HEAD : BRIDGE_OTHER_HEAD;
    }

    static int bridge_etf_head(const uint8_t *p, const uint8_t *end, int64_t *id) {
        if (!BRIDGE_SKIP(p, end, "\\x83t") || end - p < 4) return BRIDGE_OTHER_HEAD;
        p += 4;
        if (!BRIDGE_SKIP(p, end, "m\\0\\0\\0\\2id")) return BRIDGE_OTHER_HEAD;
        if (end - p >= 2 && *p == 'a') {
            *id = p[1];
            p += 2;
        } else if (end - p >= 5 && *p == 'b') {
            *id = bridge_signed_be(p + 1, 4);
            p += 5;
        } else {
            return BRIDGE_OTHER_HEAD;
        }
        if (BRIDGE_SKIP(p, end, "m\\0\\0\\0\\7success")) return BRIDGE_REPLY_HEAD;
        if (BRIDGE_SKIP(p, end, "m\\0\\0\\0\\5event" "m\\0\\0\\0\\3log")) return BRIDGE_LOG_HEAD;
        return BRIDGE_SKIP(p, end, "m\\0\\0\\0\\5event") ? BRIDGE_EVENT_HEAD : BRIDGE_OTHER_HEAD;
    }

    static uint64_t bridge_be4(const uint8_t *p) {
        return (uint64_t)p[0] << 24 | (uint64_t)p[1] << 16 | (uint64_t)p[2] << 8 | p[3];
    }

    static int bridge_head(const uint8_t *p, size_t size, int64_t *id) {
        const uint8_t *end = p + size;
        if (size >= 12 && p[0] == 0xc1) {  /* a multipart frame: its envelope follows the lengths of its buffers */
            uint64_t skipped = 12 + 4 * bridge_be4(p + 4);
            if (skipped >= size) return BRIDGE_OTHER_HEAD;
            p += skipped;
        }
        if (p == end) return BRIDGE_OTHER_HEAD;
        if (*p == '{') return bridge_json_head(p, end, id);
        if (*p == 0x83 && end - p > 1 && p[1] == 't') return bridge_etf_head(p, end, id);
        return bridge_msgpack_head(p, end, id);
    }
    """
    int bridge_head(const unsigned char *data, size_t size, int64_t *id) nogil


cdef Head head_of(Frame frame, int64_t *id) noexcept:
    """Return what `frame` is, and set `id` unless it is OTHER_HEAD. The rest of the frame may be invalid."""
    return <Head>bridge_head(frame.data, frame.length, id)


def head(Frame frame not None):
    """Return ("reply", id), ("event", id), ("log", id), or None for a message that has to be decoded first."""
    cdef int64_t id = 0
    cdef Head found = head_of(frame, &id)
    return None if found == OTHER_HEAD else (("reply", "event", "log")[<int>found], id)
