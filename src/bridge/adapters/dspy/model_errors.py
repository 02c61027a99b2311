"""What goes wrong with a language model, as errors that a host can act on."""

from __future__ import annotations

from collections.abc import Mapping

import dspy
from dspy import lm15

from bridge import errors
from bridge.adapters.dspy.prompt_fields import label_of
from bridge.adapters.dspy.reply_reader import read_fields, well_formed
from bridge.security.redaction import SEARCHED, shorten

LONGEST_REPLY = 4096  # bytes of a model's reply, or of its refusal, in an error
_LONGEST_MESSAGE = 1000  # characters
_TRACEBACK = "Traceback (most recent call last)"  # litellm's errors may hold one
_MOST_FIELDS = 32  # names that a reply made up

# What providers, and lm15 for them, call it when they withhold an answer instead of giving one.
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
    """Return DSPy's error as ours: its message without the advice, its code and status as details.
    attempts: how often the request was sent."""
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
    """Return the error for a response that withholds its answer; None where it does not.

    text: of a refusal that came beside the response.
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


def unreadable(
    error: dspy.AdapterParseError, reply: str, names: Mapping[str, str], *, truncated: bool
) -> errors.LMError:
    """Return the error for a reply without the fields that are wanted, or with one of another type.
    names: the host's names of fields, by what prompts call them."""
    wanted = [label_of(*named) for named in error.signature.output_fields.items()]
    headers = dict.fromkeys(read_fields(reply, wanted).headers)
    found = [name for name in headers if name != "completed"][:_MOST_FIELDS]
    missing = [name for name in wanted if name not in headers]
    field, reason = getattr(error, "field", None), getattr(error, "reason", "")
    expected, present, absent = ([names.get(name, name) for name in each] for each in (wanted, found, missing))
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
    details = {"field": field, "truncated": truncated or None}
    return errors.LMError(
        _line(message),
        lm_code=error.code,
        expected=expected,
        found=present,
        reply=cut(reply),
        **{name: value for name, value in details.items() if value is not None},
    )


def cut(text: str) -> str:
    """Return `text` without secrets, and no longer than an error may carry."""
    return _redacted(text).encode()[:LONGEST_REPLY].decode(errors="ignore")


def _line(text: str) -> str:
    return " ".join(_redacted(text).split())[:_LONGEST_MESSAGE]


def _redacted(text: str) -> str:
    # Before it is squeezed or cut: half a secret would not be recognized.
    return shorten(well_formed(text), SEARCHED)
