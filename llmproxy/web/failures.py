"""Which error of ours a failure on the upstream's side becomes, and how the exchange then ended."""

from __future__ import annotations

from twisted.python.failure import Failure
from twisted.web.client import ResponseFailed

from llmproxy.core import errors
from llmproxy.core.end import EndReason
from llmproxy.core.errors import ErrorClass, ProxyError
from llmproxy.core.framing import FramingError
from llmproxy.wire import dial
from llmproxy.wire.dial import DialError
from llmproxy.wire.upstream_error import (
    AnswerCut,
    FirstByteTimeout,
    IdleTimeout,
    InvalidAnswer,
    NeverAnswered,
    UploadTimeout,
    UpstreamBusy,
    UpstreamError,
)

_DIAL_STEPS = {
    dial.NAME: errors.UPSTREAM_NAME_FAILED,
    dial.CONNECT: errors.UPSTREAM_CONNECT_FAILED,
    dial.TIMEOUT: errors.UPSTREAM_CONNECT_TIMEOUT,
    dial.TLS: errors.UPSTREAM_TLS_FAILED,
    dial.PROXY: errors.UPSTREAM_CONNECT_FAILED,
}

RETRY_AFTER_S = 1
"""When to try again where there is no room at the moment: soon."""

_REFUSALS = {
    413: errors.BODY_TOO_LARGE,
    414: errors.URI_TOO_LONG,
    417: errors.EXPECTATION_FAILED,
    431: errors.HEADER_FIELDS_TOO_LARGE,
    501: errors.NOT_IMPLEMENTED,
    505: errors.VERSION_NOT_SUPPORTED,
    500: errors.PROXY_ERROR,
}


def before_the_head(reason: Failure) -> ErrorClass | None:
    """The error class for a request that got no answer; None for what is a fault of ours."""
    error = reason.value
    if isinstance(error, DialError):
        return _DIAL_STEPS[error.step]
    if isinstance(error, NeverAnswered | AnswerCut):
        return errors.UPSTREAM_RESET
    if isinstance(error, FirstByteTimeout | IdleTimeout):
        return errors.UPSTREAM_FIRST_BYTE_TIMEOUT
    if isinstance(error, InvalidAnswer):
        return errors.UPSTREAM_INVALID_ANSWER
    if isinstance(error, UploadTimeout):
        return errors.UPSTREAM_UPLOAD_TIMEOUT
    if isinstance(error, UpstreamBusy):
        return errors.UPSTREAM_BUSY
    return None


def within_the_body(reason: Failure) -> EndReason:
    """How an exchange ended whose answer broke off after its head."""
    error = reason.value
    reasons = error.reasons if isinstance(error, ResponseFailed) else [reason]
    for each in reasons:
        if each.check(IdleTimeout) is not None:
            return EndReason.IDLE_TIMEOUT
        if each.check(InvalidAnswer) is not None:
            return EndReason.UPSTREAM_INVALID
        if each.check(UploadTimeout) is not None:
            return EndReason.UPLOAD_TIMEOUT
    return EndReason.UPSTREAM_TRUNCATED


def detail(reason: Failure) -> str:
    """What the error itself says, for the log. Our own errors say nothing of addresses or of what was sent."""
    error = reason.value
    if isinstance(error, ResponseFailed) and error.reasons:
        error = error.reasons[0].value
    return str(error) if isinstance(error, DialError | UpstreamError) else type(error).__name__


def refused(error: FramingError) -> ProxyError:
    """The error for a request that the framing rules refuse; its own sentence follows the class's."""
    error_class = errors.ERROR_CLASSES.get(error.error_class) or _REFUSALS.get(error.status, errors.BAD_REQUEST)
    text = str(error)
    retry_after_s = RETRY_AFTER_S if error.status == 503 else None
    return ProxyError(error_class, detail=text[:1].upper() + text[1:] + ".", retry_after_s=retry_after_s)
