"""The messages that are sent: realistic ones made from fixed seeds, and the user's own files."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import random
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from bridge.bench.schema import Schema, infer, msgspec_type, of_all

MAX_BYTES = 64 << 20  # of a file: a larger one would not fit into a frame of a worker with default flags
MAX_LINES = 1000  # of a JSON-lines file; later lines are ignored, which `about` mentions
SUFFIXES = {".json", ".jsonl", ".ndjson"}


class BadData(ValueError):
    """Raised for a file that cannot be measured; the message says why and what to do."""


@dataclasses.dataclass(frozen=True)
class Payload:
    """Messages that are sent one after another; figures are the mean of one.

    They consist of dicts with str keys, lists, str, bytes, int, float, bool and None.
    """

    name: str
    about: str
    messages: list[Any]

    @functools.cached_property
    def ascii(self) -> bool:
        """Return whether all text is ASCII, see `case.Case.value`."""
        return ascii(self.messages) == repr(self.messages)

    @functools.cached_property
    def digest(self) -> str:
        """Return the SHA-256 of the messages with their types and order of keys, equal in all Python versions."""
        return hashlib.sha256(ascii(self.messages).encode()).hexdigest()

    @functools.cached_property
    def schema(self) -> Schema:
        """Return the schema that all messages match."""
        return of_all(self.messages)

    @functools.cached_property
    def type(self) -> Any:
        """Return the msgspec type of the messages."""
        return msgspec_type(self.schema)


# Common words of English prose, roughly by frequency.
PROSE = """
the of and to a in is that it was for on are as with his they at be this from have or by one had
not but what all were when we there can an your which their said if do will each about how up
out them then she many some so these would other into has more her two like him see time could
no make than first been its who now people my made over did down only way find use may water
long little very after words called just where most know pipe worker format frame reply question
answer passage model session program decode encode Vienna Danube Salzburg Mozart penicillin
laboratory mould bacteria discovery hospital professor experiment library museum architecture
century bridge river mountain railway station university science history
"""
WORDS = PROSE.split()
SPOKEN = (
    "Wien liegt an der schönen blauen Donau, und Žižek wohnt in Ljubljana.",
    "Η γρήγορη αλεπού πηδάει πάνω από το τεμπέλικο σκυλί.",
    "Съешь же ещё этих мягких французских булок да выпей чаю.",
    "いろはにほへと ちりぬるを わかよたれそ つねならむ",
    "床前明月光，疑是地上霜。舉頭望明月，低頭思故鄉。",
    "كل إنسان حرٌّ، ولدي شجاعة لا تُقهر.",
    "다람쥐 헌 쳇바퀴에 타고파 🐿️🎡 👩‍🚀🚀 👨‍👩‍👧‍👦",
    'quoted "text" with \\ and \n a new line and \t a tab',
)


def ping(rng: random.Random) -> Any:
    """Return a small request."""
    return {"id": 17, "command": "ping", "args": {}, "timeout_ms": 5000}


def chat(rng: random.Random) -> Any:
    """Return a request to a chat model."""
    roles = ["system"] + ["user", "assistant"] * 6
    messages = [{"role": role, "content": _prose(rng, rng.randrange(20, 120))} for role in roles]
    settings = {"temperature": 0.7, "max_tokens": 1024, "stream": True, "stop": ["\n\n"]}
    return {"model": "gpt-4o-mini", "messages": messages, **settings}


def passages(rng: random.Random) -> Any:
    """Return a question with retrieved passages."""
    found = [
        {
            "id": f"doc-{rng.randrange(10**6)}#{index}",
            "title": _prose(rng, 6),
            "text": _prose(rng, 260),
            "score": round(rng.random(), 6),
            "source": {"url": f"https://example.org/{index}", "page": rng.randrange(400)},
        }
        for index in range(8)
    ]
    return {"question": _prose(rng, 14), "passages": found, "top_k": 8}


def rows(rng: random.Random) -> Any:
    """Return the rows of a table."""
    return [
        {
            "id": 10_000 + index,
            "name": _prose(rng, 2),
            "email": f"user{index}@example.org",
            "age": rng.randrange(18, 90),
            "balance": round(rng.uniform(-500, 5000), 2),
            "active": rng.random() < 0.8,
            "note": _prose(rng, 5) if rng.random() < 0.3 else None,
        }
        for index in range(100)
    ]


def config(rng: random.Random) -> Any:
    """Return a nested configuration."""

    def service(name: str) -> dict[str, Any]:
        return {
            "image": f"registry.example.org/{name}:1.{rng.randrange(40)}",
            "replicas": rng.randrange(1, 9),
            "ports": [rng.randrange(1024, 65536) for _ in range(3)],
            "env": {"LOG_LEVEL": "info", "REGION": "eu-central", "DEBUG": False},
            "limits": {"cpu": 0.5, "memory_mb": 512, "burst": None},
            "health": {"path": "/health", "interval_s": 10, "retries": 3},
        }

    names = ("gateway", "worker", "store", "search", "metrics")
    return {
        "version": 3,
        "services": {name: service(name) for name in names},
        "features": {f"flag_{index}": rng.random() < 0.5 for index in range(20)},
        "owners": [_prose(rng, 2) for _ in range(4)],
    }


def telemetry(rng: random.Random) -> Any:
    """Return samples of metrics."""
    start = 1_760_000_000_000_000_000
    return [
        {
            "ts": start + index * 1_000_000_000 + rng.randrange(1_000_000),
            "host": f"node-{rng.randrange(8)}",
            "metric": rng.choice(("cpu.user", "cpu.system", "mem.rss", "net.rx", "net.tx")),
            "value": rng.gauss(40.0, 15.0),
            "count": rng.randrange(1000),
            "ok": rng.random() < 0.99,
        }
        for index in range(500)
    ]


def floats(count: int) -> Callable[[random.Random], Any]:
    """Return a function that returns an embedding of `count` numbers."""

    # Models make floats of 32 bits; Python stores them in 64.
    def vector(rng: random.Random) -> Any:
        single = struct.pack(f"{count}f", *(rng.gauss(0.0, 0.03) for _ in range(count)))
        return list(struct.unpack(f"{count}f", single))

    return vector


def ints(rng: random.Random) -> Any:
    """Return integers of either sign."""
    # Every number of digits is equally likely, up to 53 bits.
    return [rng.randrange(-(2 ** rng.randrange(1, 54)), 2 ** rng.randrange(1, 54)) for _ in range(4096)]


def unicode(rng: random.Random) -> Any:
    """Return texts in several scripts."""
    return {f"text_{index}": " ".join(rng.choices(SPOKEN, k=5)) for index in range(16)}


def deep(rng: random.Random) -> Any:
    """Return nested maps."""
    tree: dict[str, Any] = {"leaf": True}
    for level in range(48):
        tree = {"level": level, "name": rng.choice(WORDS), "tags": ["a", "b"], "child": tree}
    return tree


def blob(rng: random.Random) -> Any:
    """Return random bytes with a name."""
    return {"name": "image.png", "type": "image/png", "data": rng.randbytes(1 << 20)}


def _prose(rng: random.Random, count: int) -> str:
    weights = [1 / (rank + 3) for rank in range(len(WORDS))]
    return " ".join(rng.choices(WORDS, weights, k=count)).capitalize() + "."


BUILTIN: dict[str, tuple[str, Callable[[random.Random], Any]]] = {
    "ping": ("the smallest request", ping),
    "chat": ("13 messages of a chat and its settings", chat),
    "passages": ("a question with 8 passages, as retrieval sends them", passages),
    "rows": ("100 rows of a table, 7 columns, one of them often null", rows),
    "config": ("a nested configuration", config),
    "telemetry": ("500 samples of 6 fields", telemetry),
    "floats-768": ("an embedding of 768 numbers", floats(768)),
    "floats-1536": ("an embedding of 1 536 numbers", floats(1536)),
    "ints-4096": ("4 096 integers of 1 to 53 bits, either sign", ints),
    "unicode": ("16 texts in eight scripts, with emoji and escapes", unicode),
    "deep": ("nested maps, 48 levels", deep),
    "blob": ("1 MiB of random bytes, and its name", blob),
}


def builtin(name: str) -> Payload:
    """Return a built-in payload, equal on every machine. Raises KeyError."""
    about, make = BUILTIN[name]
    return Payload(name, about, [make(random.Random(f"bridge {name}"))])


def from_paths(paths: Sequence[str]) -> list[Payload]:
    """Return the payloads of files, and of all JSON files in folders. Raises BadData."""
    found = [payload for path in paths for payload in _from_path(Path(path))]
    names = [payload.name for payload in found]
    twice = next((name for name in names if names.count(name) > 1 or name in BUILTIN), None)
    if twice:
        raise BadData(f"two payloads have the name {twice}: rename one of the files")
    return found


def _from_path(path: Path) -> list[Payload]:
    if not path.is_dir():
        return [from_file(path)]
    files = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES)
    if not files:
        raise BadData(f"{path}: no file in it ends in {', '.join(sorted(SUFFIXES))}")
    return [from_file(file) for file in files]


def from_file(path: Path) -> Payload:
    """Return the payload of a file: JSON is one message, JSON lines are a message each. Raises BadData."""
    try:
        if not path.is_file():
            raise BadData(f"{path}: not a file" if path.exists() else f"{path}: no such file")
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise BadData(
                f"{path}: {size / 1e6:,.0f} MB, and a payload is at most {MAX_BYTES >> 20} MiB;"
                f" measure a part of it: head -n {MAX_LINES} {path} > part.jsonl"
            )
        data = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    except OSError as error:
        raise BadData(f"{path}: {error.strerror}") from None
    if not data.strip():
        raise BadData(f"{path}: the file is empty")
    messages, about = _parsed(path, data)
    try:
        for message in messages:
            infer(message)
    except (TypeError, RecursionError) as error:
        raise BadData(f"{path}: {error}") from None
    return Payload(path.name, about, messages)


def _parsed(path: Path, data: bytes) -> tuple[list[Any], str]:
    lines = [line for line in data.splitlines() if line.strip()]
    by_name = path.suffix.lower() in {".jsonl", ".ndjson"}
    if not by_name:
        try:
            return [msgspec.json.decode(data)], f"{path}, one message"
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            # If the first line alone is JSON, the file is JSON lines, whatever its name.
            if len(lines) < 2 or _reason(lines[0]):
                raise BadData(f"{path}: not JSON: {error}") from None
    for index, line in enumerate(lines[:MAX_LINES], 1):
        if reason := _reason(line):
            raise BadData(f"{path}: line {index} is not JSON: {reason}")
    messages = [msgspec.json.decode(line) for line in lines[:MAX_LINES]]
    cut = f", the first {MAX_LINES} of {len(lines)}" if len(lines) > MAX_LINES else ""
    return messages, f"{path}, {len(messages)} messages{cut}"


def _reason(line: bytes) -> str | None:
    try:
        msgspec.json.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return str(error)
    return None


def load(names: Sequence[str], paths: Sequence[str]) -> list[Payload]:
    """Return built-in payloads by name, then those of `paths`. Raises KeyError for a name, BadData for a path."""
    return [*map(builtin, names), *from_paths(paths)]
