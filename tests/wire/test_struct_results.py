"""Results of handlers that are structs: their fields are looked at and sent like the entries of a map."""

from __future__ import annotations

import msgspec
import pytest

from bridge import Adapter, Dispatcher
from bridge._dispatch import Context
from bridge.wire._walk import survey
from bridge.wire.codec import FORMATS


class Point(msgspec.Struct):
    x: float
    label: str = ""
    more: object = None


class Named(Point, kw_only=True):
    name: str = "n"


class Checked(msgspec.Struct):
    value: float

    @property
    def double(self):
        return 2 * self.value


@pytest.fixture
def answer():
    """Return a function that returns the reply to a call whose handler returns its argument."""
    results = []
    adapter = Adapter("structs")

    @adapter.command("give", lane="inline")
    def give(args: object, context: Context) -> object:
        return results.pop()

    dispatcher = Dispatcher(adapter)

    def answer(result, format=FORMATS[0]):
        results.append(result)
        return format.decode(dispatcher.call(format.encode({"id": 1, "command": "give"})))

    return answer


def test_fields_arrive_in_every_format(answer):
    for format in FORMATS:
        assert answer(Named(1.5, "a", [Point(2.5)], name="b"), format)["result"] == {
            "x": 1.5,
            "label": "a",
            "more": [{"x": 2.5, "label": "", "more": None}],
            "name": "b",
        }
        assert answer(Checked(1.5), format)["result"] == {"value": 1.5}


def test_numbers_that_are_not_finite_are_found_at_any_depth(answer):
    for result, path in [
        (Point(float("nan")), "result.x is nan"),
        (Point(1.0, more={"deep": [Named(float("inf"))]}), "result.more.deep[0].x is inf"),
    ]:
        reply = answer(result)
        assert (reply["code"], path in reply["error"]) == ("not_encodable", True), reply


def test_a_field_that_is_unset_is_not_encodable(answer):
    point = Point(1.0)
    del point.label
    assert answer(point)["code"] == "not_encodable"
    assert answer(Point(1.0))["success"]


def test_a_struct_may_contain_itself(answer):
    point = Point(1.0)
    point.more = point
    assert answer(point)["code"] == "not_encodable"


def test_any_number_of_types(answer):
    """As programs make them, one for each signature."""
    for number in range(1500):
        kind = msgspec.defstruct(f"Made{number}", [("value", float), (f"field{number}", int, number)])
        assert survey(kind(1.0)) == 0
        assert survey(kind(float("nan")))
    assert answer(kind(1.0))["result"] == {"value": 1.0, f"field{number}": number}
