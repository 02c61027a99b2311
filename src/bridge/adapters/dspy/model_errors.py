"""Errors of language models as LMError, with details that a host can act on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import dspy
import msgspec
from dspy import lm15

from bridge import errors
from bridge.adapters.dspy.prompt_fields import label_of
from bridge.adapters.dspy.replies.chat import ChatReply
from bridge.adapters.dspy.replies.text import read_fields, well_formed
from bridge.adapters.dspy.values.checks import broken_constraint
from bridge.adapters.dspy.values.conversion import LocatedError
from bridge.security.redaction import SEARCHED, redact_in, shorten

LONGEST_REPLY = 4096  # bytes of a model's reply or refusal in an error
_LONGEST_MESSAGE = 1000  # characters
_TRACEBACK = "Traceback (most recent call last)"  # which LiteLLM's errors may contain
_MOST_FIELDS = 32  # of a reply, in an error

# The codes of providers, and of lm15 for them, for an answer that is withheld.
_FILTERED = "content_filter"
_REFUSALS = {
    code: code
    for code in (
        _FILTERED,
        "content_policy_violation",
        "SAFETY",
        "RECITATION",
        "LANGUAGE",
        "BLOCKLIST",
        "PROHIBITED_CONTENT",
        "SPII",
    )
}
_REFUSALS |= {"promptFeedback": _FILTERED, "inband_finish_reason": _FILTERED}


def lm_error(error: dspy.DSPyError, attempts: int = 1) -> errors.LMError:
    """Return DSPy's error as LMError: the message without DSPy's advice, the code and the status as details.

    attempts: how many times the request was sent.
    """
    refused = _REFUSALS.get(error.provider_code)
    facts = {
        "lm_code": "refusal" if refused else error.code,
        "refusal": cut(error.message) if refused else None,
        "reason": refused,
        "status": error.status,
        "provider": error.provider,
        "retry_after": error.retry_after,
        "retryable": dspy.is_retryable_lm_error(error) or None,
        "attempts": attempts if attempts > 1 else None,
    }
    message = _line(_redacted(str(error)).partition("\n\n")[0].partition(_TRACEBACK)[0])
    return errors.LMError(message, **{name: v for name, v in facts.items() if v is not None})


def refusal(response: lm15.Response, text: str) -> errors.LMError | None:
    """Return the error for a response that withholds its answer, else None.

    text: of a refusal that came outside of the response.
    """
    text += "".join(part.text for part in response.message.parts_of(lm15.RefusalPart))
    if not text and response.finish_reason != _FILTERED:
        return None
    text = text or response.message.text or ""
    return errors.LMError(
        _line(f"[{response.model}] the model refused to answer" + (f": {text}" if text else "")),
        lm_code="refusal",
        refusal=cut(text),
        reason=_FILTERED if response.finish_reason == _FILTERED else "refusal",
    )


def unreadable_reply(
    error: dspy.AdapterParseError, reply: str, names: Mapping[str, str], *, truncated: bool
) -> errors.LMError:
    """Return the error for a reply that lacks an output field, or has a field of another type.

    names: the host's names of the fields, by label.
    """
    wanted = [label_of(*named) for named in error.signature.output_fields.items()]
    found = getattr(error, "found", None)
    if found is None:  # a module has used another adapter
        found = read_fields(ChatReply, reply, wanted).headers
    headers = dict.fromkeys(found)
    others = [name for name in headers if name != "completed"][:_MOST_FIELDS]
    missing = [name for name in wanted if name not in headers]
    field, reason = getattr(error, "field", None), getattr(error, "reason", "")
    expected, present, absent = ([names.get(name, name) for name in each] for each in (wanted, others, missing))
    if field is not None:
        field = names.get(field, field)
        message = f"the field {field} of the model's reply is not of its type: {reason}"
    elif not reply.strip():
        message = "the model's reply is empty"
    else:
        message = f"the model's reply has no field {', '.join(absent)}"
    message += f"; expected: {', '.join(expected)}; found: {', '.join(present) or 'none'}"
    if truncated:
        message += "; the reply was cut off at max_tokens"
    details = {"field": field, "truncated": truncated or None, **_violation(getattr(error, "cause", None), field)}
    return errors.LMError(
        _line(message),
        lm_code=error.code,
        expected=expected,
        found=present,
        reply=cut(reply),
        **{name: value for name, value in details.items() if value is not None},
    )


def wrong_output(field: str, error: LocatedError) -> errors.LMError:
    """Return the error for a value of an output that is not of its type, though the reply could be read."""
    message = f"the field {field} of the model's answer is not of its type: {error}"
    return errors.LMError(_line(message), lm_code="adapter_parse_error", field=field, **_violation(error, field))


def _violation(error: Exception | None, field: str | None) -> dict[str, Any]:
    """Return the value that breaks a constraint of its field, its path, and the constraint, as details."""
    if not isinstance(error, LocatedError) or error.violation is None:
        return {}
    details = broken_constraint(error)
    is_long = len(msgspec.json.encode(details["value"])) > LONGEST_REPLY
    return {**details, "path": f"{field}{error.path}", "value": None if is_long else redact_in(details["value"])}


def cut(text: str) -> str:
    """Return `text` without secrets, cut to LONGEST_REPLY."""
    return _redacted(text).encode()[:LONGEST_REPLY].decode(errors="ignore")


def _line(text: str) -> str:
    return " ".join(_redacted(text).split())[:_LONGEST_MESSAGE]


def _redacted(text: str) -> str:
    # Before the text is cut: half a secret would not be recognized.
    return shorten(well_formed(text), SEARCHED)
