"""Limits of a frame, checked before it is decoded: its depth and the number of its values.

Decoding holds the GIL until it is done: millions of small values would delay all pings and deadlines
for seconds and take fifty times their length in memory. So a frame that is long enough to hold too
many is counted first, without the GIL. Keys of maps count too; bytes in buffers do not.
"""

from libc.stdint cimport uint64_t

from bridge._framing cimport Frame

from msgspec import DecodeError

from bridge.wire._etf import MAX_DEPTH, inflate
from bridge.errors import FrameTooLarge


cdef extern from *:
    """
    #include <stdint.h>
    #include <string.h>

    enum { BRIDGE_FITS, BRIDGE_TOO_DEEP, BRIDGE_TOO_MANY, BRIDGE_ODD_KEYS };
    enum { BRIDGE_DEPTH = 512 };  /* MAX_DEPTH */
    /* Arrays as keys of maps. Their hashes can be predicted, and keys with one hash take a time that
       grows with the square of their number. */
    enum { BRIDGE_MOST_ODD_KEYS = 1000 };

    static uint64_t bridge_be(const uint8_t *p, int size) {
        uint64_t value = 0;
        while (size--) value = value << 8 | *p++;
        return value;
    }

    /* Returns the end of the string that begins before `p`. */
    static const uint8_t *bridge_string_end(const uint8_t *p, const uint8_t *end) {
        while (p < end) {
            const uint8_t *quote = memchr(p, '"', (size_t)(end - p)), *q = quote;
            if (quote == NULL) return end;
            while (q > p && q[-1] == '\\\\') q--;
            if ((quote - q) % 2 == 0) return quote + 1;
            p = quote + 1;
        }
        return end;
    }

    static int bridge_measure_json(const uint8_t *p, size_t size, uint64_t most) {
        const uint8_t *end = p + size;
        uint64_t opened = 0, parted = 0, values = 1;
        int depth = 0, is_new = 0;
        size_t i, j;
        /* Counts those in strings too, vectorized: most messages are below the limits even so. */
        for (i = 0; i < size; i += 128) {
            uint8_t opens = 0, parts = 0;
            size_t n = size - i < 128 ? size - i : 128;
            for (j = 0; j < n; j++) {
                opens += (p[i + j] | 0x20) == '{';
                parts += (p[i + j] == ',') | (p[i + j] == ':');
            }
            opened += opens;
            parted += parts;
        }
        if (opened <= BRIDGE_DEPTH && 1 + opened + parted <= most) return BRIDGE_FITS;
        while (p < end) {
            uint8_t c = *p++;
            if (c == ' ' || c == '\\n' || c == '\\t' || c == '\\r') continue;
            if (is_new && c != ']' && c != '}') values++;
            is_new = 0;
            if (c == '"') {
                p = bridge_string_end(p, end);
            } else if (c == '[' || c == '{') {
                if (++depth > BRIDGE_DEPTH) return BRIDGE_TOO_DEEP;
                is_new = 1;
            } else if (c == ']' || c == '}') {
                depth--;
            } else if (c == ',' || c == ':') {
                values++;
            }
            if (values > most) return BRIDGE_TOO_MANY;
        }
        return BRIDGE_FITS;
    }

    static int bridge_measure_msgpack(const uint8_t *p, size_t size, uint64_t most) {
        static const uint8_t fixed[] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4, 8, 1, 2, 4, 8, 1, 2, 4, 8,
                                        2, 3, 5, 9, 17};  /* 0xC0 to 0xD8: bytes of the body */
        const uint8_t *end = p + size;
        uint64_t items[BRIDGE_DEPTH], values = 0;  /* items: still to come in each container */
        uint8_t is_map[BRIDGE_DEPTH];
        int depth = 0, odd_keys = 0;
        while (p < end) {
            uint8_t c = *p++;
            uint64_t body = 0, inside = 0;
            int width = 0;
            if (++values > most) return BRIDGE_TOO_MANY;
            if (c <= 0x7F || c >= 0xE0) {
            } else if (c <= 0x8F) {
                inside = 2 * (c & 15);
            } else if (c <= 0x9F) {
                inside = c & 15;
            } else if (c <= 0xBF) {
                body = c & 31;
            } else if ((c >= 0xC4 && c <= 0xC9) || c >= 0xD9) {
                width = c >= 0xDC ? 2 << (c & 1) : c >= 0xD9 ? 1 << (c - 0xD9) : 1 << (c - 0xC4) % 3;
                if (end - p < width) return BRIDGE_FITS;
                body = bridge_be(p, width) + (c >= 0xC7 && c <= 0xC9);
                if (c >= 0xDC) {
                    inside = body * (c >= 0xDE ? 2 : 1);
                    body = 0;
                }
                p += width;
            } else {
                body = fixed[c - 0xC0];
            }
            if ((uint64_t)(end - p) < body) return BRIDGE_FITS;  /* cut off: the decoder reports it */
            p += body;
            if (inside) {
                if (depth == BRIDGE_DEPTH) return BRIDGE_TOO_DEEP;
                if (depth && is_map[depth - 1] && items[depth - 1] % 2 == 0 &&
                    ++odd_keys > BRIDGE_MOST_ODD_KEYS) return BRIDGE_ODD_KEYS;
                is_map[depth] = c <= 0x8F || c >= 0xDE;
                items[depth++] = inside;
            } else {
                while (depth && --items[depth - 1] == 0) depth--;
            }
        }
        return BRIDGE_FITS;
    }

    /* Returns the bytes of the atom at `p`, 0 if there is none. */
    static uint64_t bridge_atom_size(const uint8_t *p, uint64_t left) {
        if (left >= 3 && (*p == 'd' || *p == 'v')) return 3 + bridge_be(p + 1, 2);
        return left >= 2 && (*p == 's' || *p == 'w') ? 2 + p[1] : 0;
    }

    /* The decoder checks the depth and refuses tags that are not accepted. */
    static int bridge_measure_etf(const uint8_t *p, size_t size, uint64_t most) {
        const uint8_t *end = p + size;
        uint64_t values = 0;
        p++;
        while (p < end) {
            uint64_t body = 0, length = 0, left;
            uint8_t tag = *p++;
            int width = 0, has_node = 0;
            switch (tag) {  /* bytes of the length */
                case 'm': case 'M': case 'o': case 'l': case 'i': case 't': case 'p': case 'u':
                    width = 4; break;
                case 'k': case 'd': case 'v': case 'r': case 'Z': width = 2; break;
                case 'n': case 's': case 'w': case 'h': width = 1; break;
            }
            left = (uint64_t)(end - p);
            if (left < (uint64_t)width) return BRIDGE_FITS;
            length = bridge_be(p, width);
            p += width;
            left -= width;
            values += tag != 'l';  /* its tail counts instead */
            switch (tag) {
                case 'm': case 'd': case 'v': case 's': case 'w': body = length; break;
                case 'k': body = length; values += length; break;
                case 'M': case 'n': case 'o': body = length + 1; break;
                case 'p': body = length < 4 ? 0 : length - 4; break;
                case 'a': body = 1; break;
                case 'b': body = 4; break;
                case 'F': body = 8; break;
                case 'c': body = 31; break;
                case 'r': has_node = 1; body = 4 * length + 1; break;
                case 'Z': has_node = 1; body = 4 * length + 4; break;
                case 'X': case 'x': has_node = 1; body = 12; break;
                case 'Y': has_node = 1; body = 8; break;
                case 'g': has_node = 1; body = 9; break;
                case 'e': case 'f': has_node = 1; body = 5; break;
                case 'j': case 'l': case 'h': case 'i': case 't': case 'q': case 'u': break;
                default: return BRIDGE_FITS;
            }
            if (has_node) body += bridge_atom_size(p, left);
            if (values > most) return BRIDGE_TOO_MANY;
            if (left < body) return BRIDGE_FITS;
            p += body;
        }
        return BRIDGE_FITS;
    }
    """
    enum:
        BRIDGE_FITS
        BRIDGE_TOO_DEEP
        BRIDGE_ODD_KEYS
    uint64_t bridge_be(const unsigned char *p, int size) nogil
    int bridge_measure_json(const unsigned char *p, size_t size, uint64_t most) nogil
    int bridge_measure_msgpack(const unsigned char *p, size_t size, uint64_t most) nogil
    int bridge_measure_etf(const unsigned char *p, size_t size, uint64_t most) nogil


cdef enum:
    SHORT = 512           # bytes; a frame up to this size can break neither limit
    LONG = 64 * 1024      # bytes; longer frames are measured without the GIL
    ETF = 0x83
    COMPRESSED = 80


cpdef Frame limited(Frame envelope, Py_ssize_t max_frame, uint64_t max_values):
    """Return `envelope`, a message in any format; inflated if it is a compressed ETF term.

    Raises FrameTooLarge if it has more than `max_frame` bytes or more than `max_values` values,
    RecursionError if it is nested too deeply, DecodeError if it does not inflate.
    """
    cdef int found
    cdef uint64_t announced
    if envelope.length > 5 and envelope.data[0] == ETF and envelope.data[1] == COMPRESSED:
        announced = bridge_be(envelope.data + 2, 4) + 1  # with the version byte
        if announced > <uint64_t>max_frame:
            raise FrameTooLarge(f"a frame that inflates to {announced} bytes is longer than the"
                                f" limit of {max_frame} bytes", length=announced, limit=max_frame)
        envelope = Frame.of(inflate(envelope, max_frame))
    if envelope.length <= SHORT:
        return envelope
    if envelope.length > LONG:
        with nogil:
            found = measured(envelope.data, envelope.length, max_values)
    else:
        found = measured(envelope.data, envelope.length, max_values)
    if found == BRIDGE_FITS:
        return envelope
    if found == BRIDGE_TOO_DEEP:
        raise RecursionError(f"nested more than {MAX_DEPTH} levels deep")
    if found == BRIDGE_ODD_KEYS:
        raise DecodeError("more than 1000 keys of maps are arrays")
    raise FrameTooLarge(
        f"the frame holds more than {max_values} values: numbers are better sent as arrays, whose"
        " bytes do not count; or let --max-values allow more", limit=max_values)


cdef int measured(const unsigned char *data, size_t size, uint64_t most) noexcept nogil:
    if data[0] == ETF and (data[1] == b"t" or data[1] == b"P"):
        return bridge_measure_etf(data, size, most) if size > most else BRIDGE_FITS
    if data[0] >= 0x80:
        return bridge_measure_msgpack(data, size, most)
    return bridge_measure_json(data, size, most)
