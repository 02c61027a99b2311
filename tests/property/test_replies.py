"""A reply is read equally in any pieces, and its fields are those of the result."""

from __future__ import annotations

import contextlib
import itertools

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bridge import Client, errors
from bridge.adapters.dspy.replies.chat import ChatReply
from bridge.adapters.dspy.replies.json_object import JsonReply
from bridge.adapters.dspy.replies.text import read_fields, well_formed, well_formed_in
from bridge.adapters.dspy.replies.xml import XmlReply

TOKENS = st.sampled_from(
    [
        *(f"[[ ## {name} ## ]]" for name in ("a", "b", "note", "completed", "x" * 101)),
        *("`[[ ## a ## ]]`", '"[[ ## b ## ]]"', "[[ ## a ## ]", "[[ ##", " ## ]]", "[", "]]"),
        *("\n", "\n\n", "\r\n", " ", "  " * 40, "\t", "\u2028", "\x85", "x", "word", "é", "😀"),
    ]
)
REPLIES = st.lists(TOKENS | st.text(max_size=3), max_size=20).map("".join)
CUTS = st.lists(st.integers(1, 7), min_size=1)


def pieces(text, cuts):
    lengths = itertools.cycle(cuts)
    while text:
        length = next(lengths)
        yield text[:length]
        text = text[length:]


def joined(chunks):
    texts = {}
    for field, text in chunks:
        texts[field] = texts.get(field, "") + text
    return texts


@given(REPLIES, CUTS)
@example("[[ ## a ## ]]" + " \n" * 500 + "x" + " " * 500 + "\n[[ ## completed ## ]]", [1])
@example("[[ ## a ## ]]\nx\n[[ ## a ## ]]\ny\n[[ ## b ## ]] z [[ ## completed ## ]]", [3])
def test_the_pieces_do_not_matter(reply, cuts):
    """The streamed text of a field is the field, and other text is not streamed."""
    reader = ChatReply(["a", "b"])
    chunks = [chunk for piece in pieces(reply, cuts) for chunk in reader.feed(piece)]
    chunks += reader.finish()
    whole = read_fields(ChatReply, reply, ["a", "b"])
    assert (reader.texts, reader.headers) == (whole.texts, whole.headers)
    assert joined(chunks) == {name: text for name, text in whole.texts.items() if text}


JSON_TOKENS = st.sampled_from(
    [
        *('{"a": "', '"a": ', "'b': ", "b: ", '"b": [', '"z": {', '"', "'", "{", "}", "[", "]", "(", ",", ":", "\\"),
        *('\\"', "\\\\", "\\n", "\\u00e9", "\\ud83d", "\\ude00", "\\u12", "\\d", "null", "1.50", "true", "a", "b"),
        *("```json\n", "\n", " ", "é", "😀", "x" * 101),
    ]
)
XML_TOKENS = st.sampled_from(
    [
        *(
            "<a>",
            "</a>",
            "<b>",
            "</b >",
            "<b/>",
            '<a k="v">',
            "<item>",
            "</item>",
            "<z>",
            "</z>",
            "<",
            ">",
            "/",
            "</",
            "<a",
        ),
        *("&lt;", "&amp;", "&#233;", "&#x1F600;", "&", "&l", ";", "<![CDATA[", "]]>", "]]", "<![CD", "<!"),
        *("\n", " ", "é", "😀", "x" * 101),
    ]
)
OTHERS = [(JsonReply, JSON_TOKENS), (XmlReply, XML_TOKENS)]


@pytest.mark.parametrize(("kind", "tokens"), OTHERS, ids=["json", "xml"])
@given(data=st.data(), cuts=CUTS)
def test_the_pieces_do_not_matter_in_other_formats(kind, tokens, data, cuts):
    """And no reply makes a reader fail, except by the error for a value that cannot be read."""
    reply = data.draw(st.lists(tokens | st.text(max_size=2), max_size=25).map("".join))
    reader = kind(["a", "b"])
    chunks = [chunk for piece in pieces(reply, cuts) for chunk in reader.feed(piece)]
    chunks += reader.finish()
    whole = read_fields(kind, reply, ["a", "b"])
    assert (reader.texts, reader.headers) == (whole.texts, whole.headers)
    assert joined(chunks) == {name: text for name, text in whole.texts.items() if text}
    for name in whole.texts:
        for type in (str, list[str], dict[str, int]):
            with contextlib.suppress(ValueError):
                whole.value(name, type)


@given(st.dictionaries(st.sampled_from("ab"), st.text(max_size=30) | st.lists(st.text(max_size=9)), min_size=1), CUTS)
def test_what_is_written_is_read_again(fields, cuts):
    """Every text in JSON, whatever it contains; every list in both formats."""
    for kind in (JsonReply, XmlReply):
        reader = read_fields(kind, kind.written(fields), fields)
        for name, value in fields.items():
            if kind is JsonReply or isinstance(value, list):
                read = reader.value(name, list[str] if isinstance(value, list) else str)
                assert read == well_formed_in(value)


@given(st.text(st.characters(codec=None, categories=["Cs", "L", "So"]), max_size=8), CUTS)
def test_text_is_made_well_formed_as_a_whole(text, cuts):
    """Split characters are joined, and half a character alone becomes U+FFFD."""
    made = well_formed(text)
    made.encode()
    assert well_formed(made) == made
    assert made == text or any("\ud800" <= each <= "\udfff" for each in text)


@pytest.mark.parametrize(
    ("reply", "texts"),
    [
        (
            "[[ ## a ## ]]\nWrite [[ ## note ## ]] in the text.\n\n[[ ## completed ## ]]",
            {"a": "Write [[ ## note ## ]] in the text."},
        ),
        ("[[ ## a ## ]] at once\n[[ ## b ## ]]\n\n  def f():\n    pass\n", None),
        ("[[ ## a ## ]]\none\n[[ ## note ## ]]\ntwo\n[[ ## b ## ]]\nthree", None),
        ("[[ ## a ## ]]\none [[ ## completed ## ]]", {"a": "one [[ ## completed ## ]]"}),
        ("[[ ## a ## ]]\n1\n[[ ## a ## ]]\n2", {"a": "1"}),
        (
            "[[ ## a ## ]]\n`[[ ## b ## ]]`\n> [[ ## b ## ]]",
            {"a": "`[[ ## b ## ]]`\n> [[ ## b ## ]]"},
        ),
        ("[[ ## a ## ]]\nx\u2028y\x85z\r\nw\r\n", {"a": "x\u2028y\x85z\r\nw"}),
        ("plain", {}),
        ('{"a": "x"}', {}),
    ],
)
def test_fields_of_a_reply(reply, texts):
    """Headers begin fields only at the start of a line."""
    expected = {
        "[[ ## a ## ]] at once": {"a": "at once", "b": "  def f():\n    pass"},
        "[[ ## a ## ]]\none\n[[ ## note": {"a": "one", "b": "three"},
    }
    if texts is None:
        texts = next(each for start, each in expected.items() if reply.startswith(start))
    assert read_fields(ChatReply, reply, ["a", "b"]).texts == texts


@pytest.fixture(scope="module")
def client():
    with Client.start() as client:
        signature = {"inputs": [{"name": "q"}], "outputs": [{"name": "a"}, {"name": "b"}]}
        for program_type in ("predict", "chain_of_thought"):
            program = {"signature": signature, "program_type": program_type}
            client.call("create_program", {"id": program_type, **program}, timeout=60)
        signature = {"inputs": [{"name": "q"}], "outputs": [{"name": "reasoning"}]}
        program = {"signature": signature, "program_type": "chain_of_thought"}
        client.call("create_program", {"id": "reasoning", **program})
        yield client


def run(client, reply, program):
    """Return the streamed texts, and the outputs or the error."""
    client.call("configure_lm", {"provider": "scripted", "answers": [reply]})
    stream = client.stream("execute_program", {"program_id": program, "inputs": {"q": "?"}})
    chunks = [(data["field"], data["text"]) for event, data in stream if event == "chunk"]
    try:
        outputs = stream.result()["outputs"]
    except errors.LMError as error:
        outputs = error
    return joined(chunks), outputs


@given(REPLIES)
@settings(max_examples=50)
def test_chunks_together_are_the_outputs(client, reply):
    """This is a whole run in a worker; if fields are missing, the error lists those that were found."""
    reply = f"[[ ## a ## ]]\nfirst {reply}"
    chunks, outputs = run(client, reply, "predict")
    texts = read_fields(ChatReply, reply, ["a", "b"]).texts
    assert chunks == {name: text for name, text in texts.items() if text}
    if "b" in texts:
        assert outputs == texts
    else:
        assert outputs.details["lm_code"] == "adapter_parse_error"
        assert outputs.details["expected"] == ["a", "b"]
        assert "b" not in outputs.details["found"]


def test_reasoning_streams_where_the_module_adds_it(client):
    """It is streamed under the name `reasoning`."""
    reply = "[[ ## reasoning ## ]]\nr\n[[ ## a ## ]]\n1\n[[ ## b ## ]]\n2"
    chunks, outputs = run(client, reply, "chain_of_thought")
    assert chunks == outputs == {"reasoning": "r", "a": "1", "b": "2"}


def test_reasoning_of_the_module_and_of_the_host_are_distinct(client):
    """The host's output has its name, and the module's is not returned."""
    own = "[[ ## reasoning ## ]]\nthe module's\n\n"
    reply = own + "[[ ## field_reasoning ## ]]\nthe host's"
    chunks, outputs = run(client, reply, "reasoning")
    assert chunks == outputs == {"reasoning": "the host's"}
