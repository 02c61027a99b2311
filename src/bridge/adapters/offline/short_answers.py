"""Finds the short answer to a question in the sentences that match it.

The question word decides what to look for: a name for "who", a date for "when", a number for "how many". Of several
such spans the one nearest to the question's words is the answer.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from bridge.adapters.offline.reading import STOP, WORD, Reading, sentences, stem, stems

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

NOT_FOUND = "not found in the inputs"
_BONUS = 0.3  # of a preferred span, in 1 / characters of distance

Span = tuple[int, int]

_ASKING = [
    (re.compile(pattern, re.IGNORECASE), kind)
    for pattern, kind in (
        (r"\b(?:what|which) year\b", "year"),
        (r"\bwhen\b|\b(?:what|which) (?:date|day|month|century|decade)\b", "date"),
        (r"\bhow (?:many|much|tall|long|old|far|high|deep|fast|big|large|heavy|wide)\b", "number"),
        (r"\b(?:who|whom|whose)\b", "name"),
        (r"\bwhere\b|\bin (?:what|which) (?:city|country|town|place|continent)\b", "place"),
        (r"\b(?:what|which) (?:city|country|town|place|continent)\b", "name"),
        (r"\bwhy\b", "reason"),
        (r"\b(?:what|which)(?: \w+)? (?:are|were)\b", "things"),
        (r"\b(?:what|which)\b", "thing"),
        (r"^\W*(?:is|are|was|were|do|does|did|can|could|has|have|had|will|should)\b", "decision"),
    )
]
_NEGATION = re.compile(r"\b(?:not|no|never|cannot|nor|none|without)\b|n['\u2019]t\b", re.IGNORECASE)
_ASKS_OBJECT = re.compile(r"\b(?:do|does|did)\b|\b(?:after|for|of|from|by|with)\W*$")
_ASKS_DOER = re.compile(rf"\bwho ((?!(?:{'|'.join(STOP)})\b)\w+)", re.IGNORECASE)
_ASKS_IDENTITY = re.compile(r"\b(?:what|which|who)(?: \w+){0,2}? (?:is|are|was|were)\b", re.IGNORECASE)


def question_kind(question: str) -> str:
    """Return what the first question word asks for: a key of `_FINDERS`, "decision", or ""."""
    found = [(match.start(), kind) for asks, kind in _ASKING if (match := asks.search(question))]
    return min(found, key=lambda place: place[0])[1] if found else ""


class Answer(NamedTuple):
    """The words that answer, and the sentence they are taken from ("" if there is none)."""

    text: str
    sentence: str


def answer(reading: Reading) -> Answer:
    """Return the short answer to the question of a reading.

    It is NOT_FOUND if no sentence matches, and the best sentence if no span of it fits.
    """
    if not reading.found:
        return Answer(NOT_FOUND, "")
    kind, best = question_kind(reading.question), reading.found[0].sentence
    if kind == "decision":
        return Answer("yes" if agrees(reading) else "no", best)
    return span(reading, kind) or Answer(best, best)


def span(reading: Reading, kind: str) -> Answer | None:
    """Return the span of `kind` in the best sentence that has one."""
    clues = [_clue(reading.question, match.sentence) for match in reading.found]
    for find in _FINDERS.get(kind, ()):
        for clue in clues:
            if found := find(clue):
                return Answer(clue.sentence[slice(*found)].removesuffix("'s"), clue.sentence)
    return None


def agrees(reading: Reading) -> bool:
    """Return whether the best sentence says what a yes/no question asks.

    It does not if only one of the two is negated, or if the sentence has another name or number than the question.
    """
    if not reading.found:
        return False
    question, sentence = reading.question, reading.found[0].sentence
    asked, said = _specifics(question), _specifics(sentence)
    replaced = bool(asked - said) and bool(said - asked)
    return not replaced and bool(_NEGATION.search(question)) == bool(_NEGATION.search(sentence))


def _specifics(text: str) -> frozenset[str]:
    return stems(" ".join(word for word in WORD.findall(text)[1:] if not word.islower()))


def names(text: str) -> list[str]:
    """Return the capitalised names in `text`, each once, in their order."""
    found = [sentence[slice(*name)] for sentence in sentences(text) for name in _names(sentence)]
    return list(dict.fromkeys(found))


def numbers(text: str) -> list[float]:
    """Return the numbers in `text`: digits, small number words, with "million" and the like."""
    return [_number(found[0]) for found in _NUMBER.finditer(text)]


def _number(text: str) -> float:
    digits, *scales = text.lower().strip("$€£ ").replace(",", "").replace("%", "").split()
    value = float(_NUMBER_WORDS.index(digits) if digits in _NUMBER_WORDS else digits)
    for scale in scales:
        value *= _SCALES.get(scale, 1.0)
    return value


class _Clue(NamedTuple):
    """A sentence, its names, and the positions of the question's words in it."""

    question: str
    sentence: str
    names: list[Span]
    hits: list[Span]


def _clue(question: str, sentence: str) -> _Clue:
    asked = stems(question)
    names = [name for name in _names(sentence) if not stems(sentence[slice(*name)]) <= asked]
    hits = [
        word.span()
        for word in WORD.finditer(sentence)
        # A name that says more than the question ("Pacific Ocean") stays in one piece.
        if stem(word[0]) in asked and not any(a <= word.start() < b for a, b in names)
    ]
    return _Clue(question, sentence, names, hits)


_MONTH = r"(?:January|February|March|April|May|June|July|August|September|October|November|December)"
_YEAR = re.compile(r"\b(?:1\d{3}|20\d{2})\b(?![,.]?\d)")
_DATE = re.compile(
    rf"\b(?:\d{{4}}-\d{{2}}-\d{{2}}|\d{{1,2}} {_MONTH}(?:,? \d{{4}})?|{_MONTH} \d{{1,2}}, \d{{4}}"
    rf"|{_MONTH} \d{{4}}|(?:1\d{{3}}|20\d{{2}})s?|\d+ (?:BC|AD))\b(?![,.]?\d)|\b\w+ century\b"
)
_NUMBER_WORDS = WORD.findall(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen "
    "fifteen sixteen seventeen eighteen nineteen twenty"
)
_SCALES = {
    "hundred": 1e2, "thousand": 1e3, "million": 1e6, "billion": 1e9, "trillion": 1e12,
}  # fmt: skip
_DIGITS = r"-?(?:\d{1,3}(?:,\d{3})+|\d{1,15})(?:\.\d+)?"
_NUMBER = re.compile(
    rf"(?:[$€£] ?)?(?<![\w.-])(?:{_DIGITS}|\b(?:{'|'.join(_NUMBER_WORDS)})\b)(?: ?%)?"
    rf"(?: (?:{'|'.join(_SCALES)}|percent)\b){{0,3}}",
    re.IGNORECASE,
)
_UNIT = re.compile(r" (?P<noun>[^\W\d_]+)(?: (?:an?|per) [^\W\d_]+)?")
_NAME_PART = r"(?:[A-Z]\.|[A-Z][^\W_]*(?:['\u2019-][^\W_]+)*)"
_NAME = re.compile(rf"\b{_NAME_PART}(?: (?:(?:of|de|da|del|la|van|von|der|bin) )*{_NAME_PART})*")
_NOT_A_NAME = re.compile(rf"(?:{_MONTH}|{'|'.join(word.capitalize() for word in STOP)})\b(?!\.) *")
_BETWEEN_ITEMS = re.compile(r", |,? (?:and|or) ")
_COPULA = re.compile(r"\b(?:is|are|was|were)\b(?! \w+e[dn]\b)")
_REASON = re.compile(r"\b(?:because|since|due to|so that|in order to)\b[^.;]*")
_PLACE = re.compile(r"\b(?:in|on|at|near|under|between|inside) [^,.;]+")


def _names(sentence: str) -> Iterator[Span]:
    for name in _NAME.finditer(sentence):
        start, end = name.span()
        while filler := _NOT_A_NAME.match(sentence, start, end):
            start = filler.end()
        if start < end:
            yield start, end


def _is_name(clue: _Clue) -> Span | None:
    return _identified(clue, clue.names)


def _doer(clue: _Clue) -> Span | None:
    """Return the name next to the verb of "who did", if the sentence has that verb."""
    verb = _ASKS_DOER.search(clue.question)
    places = [word.span() for word in WORD.finditer(clue.sentence)]
    has_verb = verb and any(stem(clue.sentence[slice(*place)]) == stem(verb[1]) for place in places)
    return _near_name(clue) if has_verb else None


def _near_name(clue: _Clue) -> Span | None:
    return _closest(clue, clue.names, lambda place: _BONUS * _follows(clue, place, "by"))


def _in_place(clue: _Clue) -> Span | None:
    inside = ("in", "at", "near")
    return _closest(clue, [place for place in clue.names if _follows(clue, place, *inside)])


def _around(clue: _Clue) -> Span | None:
    return next(iter(_matches(_PLACE, clue)), None)


def _year(clue: _Clue) -> Span | None:
    return _closest(clue, _matches(_YEAR, clue))


def _date(clue: _Clue) -> Span | None:
    return _closest(clue, _matches(_DATE, clue))


def _quantity(clue: _Clue) -> Span | None:
    """Return the nearest number that is not a year, with its unit unless the question names it."""
    years = _matches(_YEAR, clue)
    nearest = _closest(clue, [place for place in _matches(_NUMBER, clue) if place not in years])
    unit = _UNIT.match(clue.sentence, nearest[1]) if nearest else None
    if nearest and unit and stems(unit["noun"]) - stems(clue.question):
        return nearest[0], unit.end()
    return nearest


def _clause(clue: _Clue) -> Span | None:
    return next(iter(_matches(_REASON, clue)), None)


def _is_thing(clue: _Clue) -> Span | None:
    return _identified(clue, _chunks(clue))


def _near_thing(clue: _Clue) -> Span | None:
    bonus = 0.0 if _ASKS_OBJECT.search(clue.question) else _BONUS
    return _closest(clue, _chunks(clue), lambda place: bonus * _is_named(clue, place))


def _things(clue: _Clue) -> Span | None:
    """Return the enumeration around what `_is_thing` or `_near_thing` finds."""
    thing = _is_thing(clue) or _near_thing(clue)
    groups: list[Span] = []
    for start, end in _chunks(clue):
        if groups and _BETWEEN_ITEMS.fullmatch(clue.sentence, groups[-1][1], start):
            groups[-1] = (groups[-1][0], end)
        else:
            groups.append((start, end))
    return next((group for group in groups if thing and group[0] <= thing[0] < group[1]), None)


# The finders for each kind of question. The first one that finds a span, in the best sentence in which it does,
# gives the answer.
_FINDERS: dict[str, tuple[Callable[[_Clue], Span | None], ...]] = {
    "date": (_date,),
    "name": (_is_name, _doer, _near_name),
    "number": (_quantity, _year),
    "place": (_in_place, _near_name, _around),
    "reason": (_clause,),
    "things": (_things,),
    "thing": (_is_thing, _near_thing),
    "year": (_year,),
}

_CONTENT = rf"(?!(?:{'|'.join(STOP)})\b)(?:{WORD.pattern})"
_CHUNK = re.compile(rf"(?:-(?=\d)|\b){_CONTENT}(?: (?:(?:and|of) )?{_CONTENT})*", re.IGNORECASE)


def _chunks(clue: _Clue) -> list[Span]:
    """Return the longest runs of words without stop words and without the question's words."""
    masked = clue.sentence
    for start, end in clue.hits:
        masked = masked[:start] + "|" * (end - start) + masked[end:]
    return [chunk.span() for chunk in _CHUNK.finditer(masked)]


def _identified(clue: _Clue, spans: list[Span]) -> Span | None:
    """Return the span beside the first "is" that has the question's words on its other side only."""
    if _ASKS_OBJECT.search(clue.question) or not _ASKS_IDENTITY.search(clue.question):
        return None
    for copula in _COPULA.finditer(clue.sentence):
        before = any(end <= copula.start() for _, end in clue.hits)
        after = any(start >= copula.end() for start, _ in clue.hits)
        left = [place for place in spans if place[1] <= copula.start()]
        right = [place for place in spans if place[0] >= copula.end()]
        if before and not after and right:
            return right[0]
        if after and not before and left:
            return left[-1]
    return None


def _is_named(clue: _Clue, place: Span) -> bool:
    return any(start < place[1] and place[0] < end for start, end in clue.names)


def _follows(clue: _Clue, place: Span, *words: str) -> bool:
    before = clue.sentence[: place[0]].lower().removesuffix("the ").split()
    return bool(before) and before[-1] in words


def _matches(pattern: re.Pattern[str], clue: _Clue) -> list[Span]:
    return [found.span() for found in pattern.finditer(clue.sentence)]


def _closest(clue: _Clue, places: Iterable[Span], bonus: Callable[[Span], float] = lambda _: 0.0) -> Span | None:
    """Return the span nearest to the question's words, the first one of equals."""
    return max(places, key=lambda place: _closeness(clue, place) + bonus(place), default=None)


def _closeness(clue: _Clue, place: Span) -> float:
    """Return the sum of 1 / distance over the question's words, those on the unexpected side for half."""
    total = 0.0
    for start, end in clue.hits:
        gap = max(start - place[1], place[0] - end, 0)
        total += _side(clue.question, start >= place[1]) / (4 + gap)
    return total


def _side(question: str, answer_comes_first: bool) -> float:
    if _ASKS_OBJECT.search(question):
        return 0.5 if answer_comes_first else 1.0
    if _ASKS_IDENTITY.search(question):
        return 1.0
    return 1.0 if answer_comes_first else 0.5
