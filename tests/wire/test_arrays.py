"""Arrays in the args of commands: constraints of dtype and shape, and their paths in errors."""

from __future__ import annotations

import numpy
import pytest

from bridge import errors
from tensor_frames import D2, F2, F3


def test_constraints_of_types_and_shapes(client):
    """invalid_args has the path, the expected type and the type that was sent."""
    a, b = numpy.ones((2, 3), "f4"), numpy.ones((3, 4), "f4")
    assert client.call("matmul", {"a": a, "b": b})["product"].tolist() == [[3.0] * 4] * 2
    rows = [numpy.zeros(3), numpy.zeros(3)]
    counted = client.call("many", {"rows": rows, "maybe": numpy.zeros((2, 9)), "named": {"x": a}})
    assert counted == {"rows": 2, "maybe": True, "named": 1}
    assert client.call("many") == {"rows": 0, "maybe": False, "named": 0}
    for args, path, expected in (
        ({"a": a, "b": a}, "args.b", "f32[k=3, m]"),
        ({"a": a.astype("f8"), "b": b}, "args.a", "f32[n, k]"),
        ({"a": a[0], "b": b}, "args.a", "f32[n, k]"),
        ({"a": a, "b": "text"}, "args.b", "tensor"),
        ({"a": a}, "args.b", None),
    ):
        with pytest.raises(errors.InvalidArgs) as raised:
            client.call("matmul", args)
        assert raised.value.details["path"] == path
        assert raised.value.details.get("expected") == expected
    for args, path in (
        ({"rows": [numpy.zeros(3), numpy.zeros(4)]}, "args.rows[1]"),
        ({"maybe": numpy.zeros(2)}, "args.maybe"),
        ({"named": {"x": 5}}, "args.named[...]"),
    ):
        with pytest.raises(errors.InvalidArgs) as raised:
            client.call("many", args)
        assert raised.value.details["path"] == path


def test_describe_has_the_constraints(client):
    """They are in the schema of the args, with the form of a tensor in JSON."""
    commands = client.call("describe")["commands"]
    a = commands["matmul"]["args"]["$defs"]["Product"]["properties"]["a"]
    assert a["description"] == "tensor f32[n, k]"
    assert a["required"] == ["$tensor"]
    assert commands["tensor_back"]["args"]["$defs"]["OneTensor"]["required"] == ["x"]


def test_constraints_hold_inside_lists(client):
    """In tuples, and in structs that are lists on the wire."""
    x = numpy.zeros(3)
    assert client.call("places", {"pair": ("a", x), "point": ["b", x]})["x"].shape == (3,)
    for args, path in (
        ({"pair": ("a", x.reshape(1, 3))}, "args.pair[1]"),
        ({"point": ["b", x[:2]]}, "args.point[1]"),
    ):
        with pytest.raises(errors.InvalidArgs) as raised:
            client.call("places", args)
        assert raised.value.details["path"] == path


def test_recursive_types(client):
    """A constraint holds at the top of them."""
    x = numpy.zeros(3)
    back = client.call("tree", {"leaf": x, "left": {"leaf": x}, "right": [{"leaf": x}]})
    assert back == {"leaf": "ndarray", "has_left": True}
    with pytest.raises(errors.InvalidArgs) as raised:
        client.call("tree", {"leaf": x.reshape(3, 1)})
    assert raised.value.details["path"] == "args.leaf"


@pytest.mark.parametrize(
    ("args", "path"),
    [
        ({"either": {"type": "Three", "x": F3}}, None),
        ({"either": {"type": "Two", "x": D2}}, None),
        ({"either": {"type": "Three", "x": D2}}, "args.either.x"),
        ({"row": ["Row", F3, F2]}, None),
        ({"row": ["Row", F2, F3]}, "args.row[1]"),
        ({"tree": {"w": F3, "kids": [{"w": F3}]}}, None),
        ({"tree": {"w": F3, "kids": [{"w": F2}]}}, "args.tree.kids[0].w"),
        ({"pair": ["a", F3]}, None),
        ({"pair": ["a", F2]}, "args.pair.x"),
        ({"options": F3}, "args.options"),
        ({"tree": F3}, "args.tree"),
        ({"by_number": F3}, "args.by_number"),
    ],
)
def test_constraints_follow_the_converted_value(client, args, path):
    """Unions by their tags, lists by index, and recursive types; an array is not a map."""
    args = {"x": F3, **args}
    if path is None:
        assert set(client.call("several", args)["came"]) == {*args, "by_number"}
        return
    with pytest.raises(errors.InvalidArgs) as raised:
        client.call("several", args)
    assert raised.value.details["path"] == path
