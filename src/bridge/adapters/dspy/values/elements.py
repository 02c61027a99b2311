"""Values of output fields from elements of XML, as DSPy writes them: all texts, so that numbers stay exact.

A list has an `item` for each value; a map an element for each key, an `entry` with the attribute `key` for a key that
is no name.
"""

from __future__ import annotations

import types
from typing import Any, get_args, get_origin
from xml.etree.ElementTree import Element, tostring

import pydantic
from dspy.adapters.utils import parse_value
from dspy.adapters.xml_adapter import XMLAdapter

from bridge.adapters.dspy.schemas.objects import Items, Object, is_kind
from bridge.adapters.dspy.values.conversion import bare_type, convert, is_union
from bridge.adapters.dspy.values.literals import NotData, read_data
from bridge.adapters.dspy.values.outputs import is_declarable


def value_of_element(element: Element, type: Any) -> Any:
    """Return the content of an element as a value of `type`. Raises ValueError."""
    if is_declarable(type):
        return convert(_data(element, type), type)
    # A type that only modules of the operator have.
    schema = pydantic.TypeAdapter(type).json_schema(by_alias=False)
    return parse_value(XMLAdapter._elements_to_value([element], schema, schema.get("$defs", {})), type)


def _data(element: Element, type: Any) -> Any:
    """Return the content of an element as data of which a value of `type` can be made."""
    type = bare_type(type)
    if is_union(type):
        members = [bare_type(member) for member in get_args(type)]
        if types.NoneType in members and _is_empty(element):
            return None
        type = _nearest(element, members)
    if type is Any:
        type = _likely(element)
    is_list = get_origin(type) is list or is_kind(type, Items)
    is_map = get_origin(type) is dict or is_kind(type, Object)
    if not (is_list or is_map):
        return _text(element)
    if not len(element):
        return _written(element) if _text(element) else [] if is_list else {}
    return _list(element, type) if is_list else _map(element, type)


def _list(element: Element, type: Any) -> list[Any]:
    """Return the children of an element, which may have any names."""
    if get_origin(type) is list:
        (item,) = get_args(type)
        return [_data(child, item) for child in element]
    first = type.first
    others = type.others if type.others is not None else Any
    return [_data(child, first[index] if index < len(first) else others) for index, child in enumerate(element)]


def _map(element: Element, type: Any) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for child in element:
        key = child.attrib.get("key", child.tag) if child.tag == "entry" else child.tag
        inner = bare_type(_type_of_key(type, key))
        data = _data(child, inner)
        if get_origin(inner) is list:  # whose items may also be elements of its name
            made[key] = [*made.get(key, ()), *(data if isinstance(data, list) else [data])]
        elif key in made:
            raise ValueError(f"the key {key[:50]!r} is repeated")
        else:
            made[key] = data
    return made


def _type_of_key(type: Any, key: str) -> Any:
    if get_origin(type) is dict:
        return get_args(type)[1]
    known = type.properties.get(key)
    return known.type if known is not None else type.others if type.others is not None else Any


def _nearest(element: Element, members: list[Any]) -> Any:
    """Return the member of a union that the children of an element suggest."""
    keys = {child.tag for child in element}
    if not keys:
        return next((member for member in members if not _is_collection(member)), members[0])
    collections = [member for member in members if _is_collection(member)]
    return max(collections, key=lambda member: _likeness(keys, member), default=members[0])


def _likeness(keys: set[str], member: Any) -> int:
    if is_kind(member, Object):
        return len(keys & member.properties.keys())
    is_list = get_origin(member) is list or is_kind(member, Items)
    return int(is_list == (keys == {"item"}))


def _likely(element: Element) -> Any:
    """Return the type of an element whose content may be anything."""
    if not len(element):
        return str
    return list[Any] if {child.tag for child in element} == {"item"} else dict[str, Any]


def _is_collection(type: Any) -> bool:
    is_generic = get_origin(type) in (list, dict)
    return is_generic or type is Any or is_kind(type, Object) or is_kind(type, Items)


def _is_empty(element: Element) -> bool:
    return not len(element) and not _text(element)


def _text(element: Element) -> str:
    """Return the content of an element as text, with the tags in it."""
    inner = "".join(tostring(child, encoding="unicode") for child in element)
    return f"{element.text or ''}{inner}".strip()


def _written(element: Element) -> Any:
    """Return the data that is written in an element as JSON or as a Python literal, else the text."""
    try:
        return read_data(_text(element))
    except NotData:
        return _text(element)
