"""Python functions as tools: their declarations, arguments and replies."""

from __future__ import annotations

import asyncio
import dataclasses
import datetime
import enum
import functools
import logging
import traceback
import typing
from decimal import Decimal
from typing import Annotated, Any, Literal

import msgspec
import pydantic
import pytest

from bridge import Client, errors
from client_uses import SUPPORT_PATH


class Color(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Person(pydantic.BaseModel):
    name: str
    born: datetime.date


@dataclasses.dataclass
class Point:
    x: int
    y: int = 0


class Movie(typing.TypedDict):
    title: str
    year: int


class Place(msgspec.Struct):
    city: str
    height: int = 0


@pytest.fixture(scope="module", params=["msgpack", "json", "etf"])
def any_client(request):
    with Client.start(adapter="hostile:adapter", env=SUPPORT_PATH, format=request.param) as client:
        yield client


@pytest.fixture(scope="module")
def client(start_either):
    with start_either(adapter="hostile:adapter", env=SUPPORT_PATH) as client:
        yield client


def use(client, tool, args, name=None):
    """Register a tool, and let the worker call it."""
    client.register_tools([tool])
    name = name or tool.__name__
    return client.call("use_tool", {"name": name, "args": args})


def declaration(client, tool):
    client.register_tools([tool])
    (declared,) = client.call("declared_tools")
    return declared


def taking(annotation):
    """Return a tool that records its arguments."""

    def take(value):
        take.taken = value
        return "taken"

    take.__annotations__ = {"value": annotation}
    return take


@pytest.mark.parametrize(
    ("annotation", "given", "taken"),
    [
        (datetime.date, "2024-02-29", datetime.date(2024, 2, 29)),
        (datetime.datetime, "2024-02-29T12:00:00", datetime.datetime(2024, 2, 29, 12)),
        (datetime.time, "12:30:00", datetime.time(12, 30)),
        (datetime.timedelta, "PT90M", datetime.timedelta(minutes=90)),
        (Decimal, "0.10", Decimal("0.10")),
        (Decimal, 0.1, Decimal("0.1")),
        (Color, "blue", Color.BLUE),
        (Literal["a", 1], 1, 1),
        (datetime.date | None, None, None),
        (datetime.date | None, "2024-02-29", datetime.date(2024, 2, 29)),
        (int | datetime.date, "2024-02-29", datetime.date(2024, 2, 29)),
        (int | str, "5", "5"),
        (int, "5", 5),
        (int, 5.0, 5),
        (float, 5, 5.0),
        (bool, "true", True),
        (list[datetime.date], ["2024-02-29"], [datetime.date(2024, 2, 29)]),
        (dict[str, Decimal], {"a": "1.5"}, {"a": Decimal("1.5")}),
        (tuple[int, str], [1, "a"], (1, "a")),
        (set[int], [1, 2, 1], {1, 2}),
        (Annotated[int, pydantic.Field(gt=3)], 4, 4),
        (Person, {"name": "A", "born": "1756-01-27"}, Person(name="A", born="1756-01-27")),
        (list[Point], [{"x": 1}], [Point(1)]),
        (Point, {"x": 1}, Point(1)),
        (Point | None, {"x": 1, "y": 2}, Point(1, 2)),
        (Movie, {"title": "M", "year": 1931}, {"title": "M", "year": 1931}),
        (Place, {"city": "Graz"}, Place("Graz")),
        (list[Place], [{"city": "Graz"}], [Place("Graz")]),
        (Any, {"a": [1]}, {"a": [1]}),
        ("datetime.date", "2024-02-29", datetime.date(2024, 2, 29)),
    ],
)
def test_arguments_are_of_the_annotated_type(any_client, annotation, given, taken):
    """This holds in every format."""
    tool = taking(annotation)
    assert use(any_client, tool, {"value": given}) == "taken"
    assert tool.taken == taken
    assert type(tool.taken) is type(taken)


@pytest.mark.parametrize(
    ("annotation", "given", "line"),
    [
        (datetime.date, "tomorrow", "expected a date (YYYY-MM-DD), got 'tomorrow'"),
        (datetime.date, 20240229, "expected a date (YYYY-MM-DD), got 20240229"),
        (datetime.date | None, "soon", "expected a date (YYYY-MM-DD), got 'soon'"),
        (datetime.datetime, 5, "expected a date and time (YYYY-MM-DDTHH:MM:SS), got 5"),
        (int, "five", "expected an integer, got 'five'"),
        (int, 1.5, "expected an integer, got 1.5"),
        (int, True, "expected an integer, got True"),
        (int, None, "expected an integer, got None"),
        (float, [], "expected a number, got []"),
        (str, 5, "expected text, got 5"),
        (bool, "perhaps", "expected true or false, got 'perhaps'"),
        (Decimal, "much", "expected a decimal number, got 'much'"),
        (Color, "green", "expected 'red' or 'blue', got 'green'"),
        (Literal["a", "b"], "c", "expected 'a' or 'b', got 'c'"),
        (int | datetime.date, "x", "expected an integer or a date (YYYY-MM-DD), got 'x'"),
        (list[int], "x", "expected a list, got 'x'"),
        (dict[str, int], [], "expected an object, got []"),
        (Annotated[int, pydantic.Field(gt=3)], 3, "should be greater than 3, got 3"),
        (Person, "Ann", "expected an object, got 'Ann'"),
    ],
)
def test_wrong_arguments_are_one_line_for_the_model(client, annotation, given, line):
    """The line has the argument's name, the expected type and the value, without traceback or path of a file."""
    tool = taking(annotation)
    with pytest.raises(errors.InvalidArgs) as raised:
        use(client, tool, {"value": given})
    assert str(raised.value) == f"argument 'value': {line}"
    assert not hasattr(tool, "taken")


@pytest.mark.parametrize(
    ("annotation", "given", "line"),
    [
        (list[int], [1, "x"], "argument 'value[1]': expected an integer, got 'x'"),
        (Person, {"name": "A"}, "argument 'value.born' is missing"),
        (
            list[Person | int],
            [{"name": "A", "born": "x"}],
            "argument 'value[0].born': expected a date (YYYY-MM-DD), got 'x'",
        ),
        (Point, {"x": "a"}, "argument 'value.x': expected an integer, got 'a'"),
        (Movie, {"title": "M", "year": "x"}, "argument 'value.year'"),
        (Place, {"city": 5}, "argument 'value.city': expected str, got int"),
    ],
)
def test_errors_inside_a_value_have_a_path(client, annotation, given, line):
    """The path leads to the wrong part."""
    with pytest.raises(errors.InvalidArgs) as raised:
        use(client, taking(annotation), {"value": given})
    assert line in str(raised.value)
    assert "\n" not in str(raised.value)


def test_unknown_and_missing_arguments(client):
    """Both are named, together with the known ones."""

    def add(a: int, b: int = 1) -> int:
        return a + b

    assert use(client, add, {"a": 1}) == 2
    with pytest.raises(errors.InvalidArgs, match="argument 'a' is missing"):
        use(client, add, {})
    with pytest.raises(errors.InvalidArgs, match="unknown argument 'c'; known: a, b"):
        use(client, add, {"a": 1, "c": 2})


def test_declarations_of_tools(client):
    """A declaration has the schemas of the annotations, the defaults, and the whole docstring."""

    def book(when: datetime.date, color: Color = Color.RED, *, people: list[Person] | None = None):
        """Book a table.

        Takes a day and people.
            Indented.
        """

    declared = declaration(client, book)
    assert declared["name"] == "book"
    assert declared["description"] == "Book a table.\n\nTakes a day and people.\n    Indented."
    args = declared["args"]
    assert list(args) == ["when", "color", "people"]
    assert args["when"] == {"type": "string", "format": "date"}
    assert args["color"]["enum"] == ["red", "blue"]
    assert args["color"]["default"] == "red"
    assert args["people"]["default"] is None
    assert args["people"]["$defs"]["Person"]["properties"]["born"]["format"] == "date"


class Greeter:
    def greet(self, name: str, when: datetime.date) -> str:
        """Greet."""
        return f"{name} {when:%d.%m.}"

    def __call__(self, when: datetime.date) -> str:
        """Greet everyone."""
        return f"all {when:%d.%m.}"


def positional(when: datetime.date, name: str = "a", /, *, mark: str = "!") -> str:
    return f"{name} {when:%d.%m.}{mark}"


def decorated(function):
    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        return function(*args, **kwargs)

    return wrapper


@pytest.mark.parametrize(
    ("tool", "name", "args", "result"),
    [
        (Greeter().greet, "greet", {"name": "Ann"}, "Ann 29.02."),
        (Greeter(), "Greeter", {}, "all 29.02."),
        (functools.partial(Greeter().greet, name="Bob"), "greet", {}, "Bob 29.02."),
        (functools.partial(Greeter().greet, "Bob"), "greet", {}, "Bob 29.02."),
        (positional, "positional", {"name": "b", "mark": "?"}, "b 29.02.?"),
        (positional, "positional", {}, "a 29.02.!"),
        (decorated(Greeter().greet), "greet", {"name": "Ann"}, "Ann 29.02."),
    ],
)
def test_every_kind_of_callable(client, tool, name, args, result):
    """Methods, objects, partials, wrappers, and functions with positional-only parameters can be tools."""
    assert use(client, tool, {"when": "2024-02-29", **args}, name) == result
    declared = declaration(client, tool)
    assert declared["name"] == name
    if "Greeter" in repr(tool):
        assert declared["description"].startswith("Greet")
    assert declared["args"]["when"]["format"] == "date"
    if isinstance(tool, functools.partial):
        assert "name" not in declared["args"]


async def asynchronous(a: int) -> int:
    return a


class Asynchronous:
    async def __call__(self, a: int) -> int:
        return a


def unresolved(a: Missing) -> int:  # noqa: F821
    return 0


@pytest.mark.parametrize(
    ("tool", "text"),
    [
        (lambda a: a, "<lambda> cannot be the name of a tool"),
        (lambda *a: a, "<lambda> cannot be the name of a tool"),
        (unresolved, "annotations cannot be resolved: name 'Missing'"),
        (5, "a tool must be a function or another callable, not 5"),
        (taking(asyncio.Lock), "argument value"),
    ],
)
def test_callables_that_cannot_be_tools(client, tool, text):
    """Registering one raises a TypeError with the reason."""
    with pytest.raises(TypeError, match=text):
        client.register_tools([tool])


@pytest.mark.parametrize("tool", [asynchronous, Asynchronous(), functools.partial(asynchronous, 1)])
def test_async_functions_are_tools_of_the_asyncio_client_only(any_client, tool):
    """The error names it."""
    with pytest.raises(TypeError, match=r"an async function cannot be a tool of this client; use bridge\.aio"):
        any_client.register_tools([tool])


class Own(BaseException):
    pass


class Mute(Exception):
    def __str__(self):
        raise RuntimeError("no words")

    __repr__ = __str__


class Exits(Exception):
    def __str__(self):
        raise SystemExit(3)


def cyclic():
    value: list[Any] = []
    value.append(value)
    return value


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ValueError("no such city"), "ValueError: no such city"),
        (SystemExit(3), "SystemExit: 3"),
        (KeyboardInterrupt(), "KeyboardInterrupt"),
        (asyncio.CancelledError(), "CancelledError"),
        (GeneratorExit(), "GeneratorExit"),
        (StopIteration(), "StopIteration"),
        (Own("mine"), "Own: mine"),
        (Mute(), "Mute"),
        (Exits(), "Exits"),
        (ValueError("\ud800"), "ValueError: ?"),
    ],
)
def test_a_tool_that_raises_gets_a_reply(client, error, text, caplog):
    """The code is handler_error with the exception's text, and the stack is logged."""

    def fail():
        raise error

    with pytest.raises(errors.HandlerError) as raised:
        use(client, fail, {})
    assert str(raised.value).startswith(text)
    (record,) = (record for record in caplog.records if record.name == "bridge")
    assert (record.levelno, record.getMessage()) == (logging.ERROR, "tool fail failed")
    assert record.exc_info[1] is error
    assert traceback.extract_tb(record.exc_info[2])[-1].name == "fail"


@pytest.mark.parametrize("value", [object(), {"a": {1: object()}}, lambda: 0, (i for i in [1])])
def test_a_result_that_cannot_be_sent_is_an_error(any_client, value):
    """The code is not_encodable."""

    def give():
        return value

    with pytest.raises(errors.NotEncodable):
        use(any_client, give, {})


def test_a_result_that_is_longer_than_a_frame(client):
    """The code is frame_too_large, and the client continues."""

    def give():
        return b"x" * (65 << 20)

    with pytest.raises(errors.FrameTooLarge):
        use(client, give, {})


def test_errors_of_the_bridge_keep_their_code(client):
    """A tool may raise a class of bridge.errors."""

    def fail():
        raise errors.QuotaExceeded("enough")

    with pytest.raises(errors.QuotaExceeded, match="enough"):
        use(client, fail, {})


def test_types_that_are_defined_beside_the_tool(any_client):
    """Annotations are text in this module, and local names are resolved when the tool is registered."""

    @dataclasses.dataclass
    class Local:
        x: int

    def take(value: Local) -> int:
        return value.x

    assert use(any_client, take, {"value": {"x": 5}}) == 5
