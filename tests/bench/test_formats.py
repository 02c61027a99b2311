"""The compared formats and payloads: round trips, unsuitable pairs, schemas, and data of the user."""

from __future__ import annotations

import subprocess
import sys

import msgspec
import pytest

from bench_runs import reason_against, written
from bridge.bench import Payload, formats, payloads
from bridge.bench.case import Case
from bridge.bench.pipe import Pipe
from bridge.bench.schema import difference, infer, merge, msgspec_type, of_all

SUITABLE = {
    "arrow": {"rows", "telemetry", "floats-768", "floats-1536", "ints-4096"},
    "protobuf-struct": {"floats-768", "floats-1536", "unicode"},
}


NO_BYTES = {"json", "orjson", "msgspec-json", "protobuf-struct", "bridge-json"}


@pytest.mark.parametrize("payload", payloads.BUILTIN)
@pytest.mark.parametrize("format", formats.BUILTIN)
def test_each_format_carries_each_payload_or_has_a_reason(format, payload):
    """The pairs that are N/A are pinned, each with a reason of one line."""
    expected = payload in SUITABLE.get(format, payloads.BUILTIN)
    expected = expected and not (payload == "blob" and format in NO_BYTES)
    reason = reason_against(format, payloads.builtin(payload))
    assert (reason is None) == expected, reason
    assert reason is None or (5 < len(reason) < 250 and "\n" not in reason)


def utf8_is_known(text: str) -> bool:
    """Return whether CPython has cached the text's UTF-8, which makes the object larger than a new one."""
    return sys.getsizeof(text) > sys.getsizeof("".join(list(text)))


class Watching(formats.MsgspecMessagePack):
    """Counts calls with text whose UTF-8 is cached already."""

    def __init__(self, payload):
        super().__init__(payload)
        self.calls, self.known, encode = 0, 0, self.encode

        def watched(native):
            self.calls += 1
            self.known += any(map(utf8_is_known, native.values()))
            return encode(native)

        self.encode = watched


class WatchingForeign(Watching):
    """Gets text in `build`."""

    foreign = True

    def __init__(self, payload):
        super().__init__(payload)
        self.build, self.encode = self.encode, bytes
        self.read, self.decode = self.decode, bytes


@pytest.mark.parametrize("kind", [Watching, WatchingForeign])
def test_text_is_encoded_from_new_strings(kind):
    """By itself and in round trips: no library copies UTF-8 that an earlier call has left behind.
    Of ASCII there is none to leave."""
    payload = payloads.builtin("unicode")
    case = Case(kind, payload)
    warm = payload.messages[0]
    assert any(map(utf8_is_known, warm.values()))  # or this test would see nothing
    watch = case.format
    watch.calls = watch.known = 0
    case.times(0.0005)
    assert watch.calls > 10
    assert watch.known == 0
    pipe = Pipe([sys.executable, "-m", "bridge.bench.worker", "msgspec-msgpack"])
    try:
        pipe.trips(case, 5, check=True)
    finally:
        pipe.close()
    assert watch.known == 0
    plain = Case(kind, Payload("plain", "", [{"a": "b"}]))
    assert plain.native(0) is plain.native(1)


def test_payloads_are_the_same_each_time():
    """Their seeds are fixed, in any process."""
    code = "from bridge.bench import payloads as p; import pickle, hashlib; print(hashlib.sha256(b''"
    code += ".join(pickle.dumps(p.builtin(n).messages) for n in p.BUILTIN)).hexdigest())"
    found = {subprocess.check_output([sys.executable, "-c", code]) for _ in range(2)}
    assert len(found) == 1


def test_schemas_are_inferred():
    """Records are merged, missing keys and nulls are distinguished, and types accept their values."""
    rows = [{"a": 1, "b": None}, {"a": 2.5, "b": "x", "some-key": [1, -2]}]
    schema = of_all(rows)
    assert schema.fields["a"].kinds == ["float", "int"]
    assert schema.fields["b"].nullable
    assert schema.optional == {"some-key"}
    assert schema.fields["some-key"].items.negative
    kind = msgspec_type(schema)
    for row in rows:
        assert difference(row, msgspec.to_builtins(msgspec.convert(row, kind))) is None
    assert merge(infer(1), infer(1)) == infer(1)
    for value in ({1: 2}, {1, 2}):
        with pytest.raises(TypeError):
            infer(value)


@pytest.mark.parametrize(
    ("one", "other", "words"),
    [
        (1, 1.0, "$: 1 became 1.0"),
        (1, True, "$: 1 became True"),
        ("a", b"a", "$: 'a' became b'a'"),
        ({"a": [1, 2]}, {"a": [1, 3]}, "$.a[1]: 2 became 3"),
        ({"a": 1}, {}, "$: the key 'a' is missing"),
        ({}, {"a": 1}, "$: a key 'a' appeared"),
        ([1], [1, 2], "$: 1 entries became 2"),
    ],
)
def test_a_difference_has_its_path(one, other, words):
    """Equal values have no difference."""
    assert difference(one, other) == words
    assert difference(one, one) is None


SHAPES = {
    "optional": [{"a": 1}, {"b": None}, {"a": None, "b": "x"}],
    "nested lists": [{"m": [[1, 2], [], [3]]}],
    "lists in lists": [[[1, 2], [3]]],
    "lists of lists of records": [{"m": [[{"a": 1}], [{"a": -2}]]}],
    "mixed": [{"v": [1, "a", None, 2.5]}],
    "nothing": [None],
    "empty": [{}],
    "empty list": [{"a": []}],
    "scalar": ["text"],
    "odd keys": [{"a-b": 1, "class": 2, "": 3, "é": 4}],
    "big numbers": [{"n": 2**70}],
    "surrogate": [{"s": "\ud800"}],
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("format", formats.BUILTIN)
def test_odd_shapes_come_back_or_are_refused(format, shape):
    """Whatever the user's data look like: equal, or N/A in one line. The standard library's carry
    all of it, but JSON no lone surrogate."""
    reason = reason_against(format, Payload(shape, "", SHAPES[shape]))
    assert reason is None or (reason and "\n" not in reason)
    if format in ("json", "pickle"):
        assert (reason is None) == (shape != "surrogate" or format == "pickle")


def test_user_data(tmp_path):
    """JSON is one message, JSON lines are one message each, a folder is all of its files."""
    written(tmp_path, "a.json", b'\xef\xbb\xbf{"x": 1}')
    written(tmp_path, "b.jsonl", b'{"x": 1}\n\n{"y": [2]}\n')
    written(tmp_path, "c.json", b'{"x": 1}\n{"x": 2}\n')
    written(tmp_path, "ignored.txt", b"no")
    found = {p.name: p.messages for p in payloads.from_paths([str(tmp_path)])}
    assert found["a.json"] == [{"x": 1}]
    assert found["b.jsonl"] == [{"x": 1}, {"y": [2]}]
    assert found["c.json"] == [{"x": 1}, {"x": 2}]
    assert len(found) == 3
    many = written(tmp_path, "many.jsonl", b"1\n" * 1500)
    assert len(payloads.from_file(many).messages) == payloads.MAX_LINES
    assert "the first 1000 of 1500" in payloads.from_file(many).about
