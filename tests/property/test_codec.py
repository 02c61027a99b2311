"""Laws of the formats: values survive a round trip, and the id of a broken message is found."""

from __future__ import annotations

import json
import subprocess
import sys

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.errors import InvalidArgs, NotEncodable
from bridge.wire import codec, lenient
from bridge.wire._frames import format_of
from bridge.wire.non_finite import refuse_non_finite

scalars = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text(max_size=20)
values = st.recursive(
    scalars | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
maps = st.dictionaries(st.text(max_size=8), values, max_size=5)
ids = st.integers(-(2**63), 2**64 - 1) | st.text(max_size=30)


@given(maps)
def test_every_format_brings_a_map_back(value):
    """The format is detected by the first bytes."""
    for format in codec.FORMATS:
        data = format.encode(value)
        if len(value) < 2**16:
            assert format_of(data) is format
        assert format.decode(data) == value


def test_first_bytes_belong_to_one_format():
    """No frame can be read in two formats."""
    seen = [beginning for format in codec.FORMATS for beginning in format.beginnings]
    assert len(seen) == len(set(seen))
    assert {format.name for format in codec.FORMATS} == {"json", "msgpack", "etf"}
    assert codec.by_name("yaml") is None


@given(ids, maps, st.booleans(), st.integers(0, 40))
def test_the_id_of_a_broken_message_is_found(request_id, args, id_first, cut):
    """Its position does not matter, nor what args contain."""
    message = {"id": request_id, "command": "x"} if id_first else {"command": "x"}
    message["args"] = {**args, "id": "not this one"}
    message["id"] = request_id
    for format in codec.FORMATS:
        data = format.encode(message)
        assert format.find_id(data) == request_id
        if not id_first:
            continue
        kept = len(format.encode({"id": request_id})) + 2
        assert format.find_id(data[: max(kept, len(data) - cut)]) == request_id


@given(st.binary(max_size=200))
def test_rubbish_never_raises(data):
    """It has no id, or one of an id's types."""
    for find in (lenient.json_id, lenient.msgpack_id, lenient.etf_id):
        assert isinstance(find(data), int | str | None)
    assert isinstance(lenient.msgpack_repair(data, True), bytes)


@given(values)
def test_repair_leaves_sound_messages_alone(value):
    """Valid MessagePack of any shape is unchanged."""
    data = msgspec.msgpack.encode(value)
    assert lenient.msgpack_repair(data, False) == data
    assert lenient.msgpack_repair(data, True) == data


@pytest.mark.parametrize("size", [1, 31, 32, 255, 256, 65_536])
def test_strings_that_are_not_utf8(size):
    """They become bytes, or are decoded with replacements; the rest of the message is unchanged."""
    data = msgspec.msgpack.encode({"a": "x" * size, "b": [1]})
    broken = data.replace(b"x", b"\xff")
    assert codec.MSGPACK.decode_args(broken, dict) == {"a": b"\xff" * size, "b": [1]}
    replaced = codec.MSGPACK.decode_args(broken, dict[str, object], undecodable="replace")
    assert replaced == {"a": "\ufffd" * size, "b": [1]}


def test_json_that_is_not_utf8():
    """JSON has no bytes: it is an error, or decoded with replacements if asked for."""
    with pytest.raises(InvalidArgs, match="args is not valid json"):
        codec.JSON.decode_args(msgspec.Raw(b'{"a": "\xff"}'), dict)
    assert codec.JSON.decode_args(msgspec.Raw(b'{"a": "\xff"}'), dict, undecodable="replace") == {"a": "\ufffd"}


@given(values)
def test_finite_values_pass(value):
    """Values of any shape pass."""
    refuse_non_finite(value, "result")


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_non_finite_numbers_are_found_wherever_they_are(number):
    """They are found in maps, lists, tuples, sets and structs, with their path."""

    class Point(msgspec.Struct):
        x: float

    places = {
        "result": number,
        "result.a[1]": {"a": [0, number]},
        "result[0].x": (Point(number),),
        "result[0]": {number},
    }
    for place, value in places.items():
        with pytest.raises(NotEncodable) as raised:
            refuse_non_finite(value, "result")
        assert raised.value.details == {"path": place}


def test_the_oracle_agrees_that_json_has_no_nan():
    """msgspec silently writes null, which is the reason for the check."""
    assert msgspec.json.encode(float("nan")) == b"null"
    assert json.dumps(float("nan")) == "NaN"


FIRST_USES = """
import sys, threading
import msgspec
from bridge.wire.codec import FORMATS

sys.setswitchinterval(1e-6)
for round in range(100):
    inner = msgspec.defstruct("Inner", [(f"f{i}", list[int], []) for i in range(20)])
    outer = msgspec.defstruct("Outer", [(f"f{i}", dict[str, inner], {}) for i in range(20)])
    start = threading.Barrier(12)
    def use(format):
        data = format.encode({"f19": {"a": {"f19": [1]}}})
        start.wait()
        assert format.decode(data, outer).f19["a"].f19 == [1]
    threads = [threading.Thread(target=use, args=[FORMATS[i % 3]]) for i in range(12)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
"""


def test_many_threads_may_be_the_first_to_use_a_type():
    """msgspec alone crashes if two threads inspect a type at the same moment."""
    result = subprocess.run([sys.executable, "-c", FIRST_USES], capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")
