"""How a request to an upstream can fail once there is, or could be, a connection: one class for each way.

The rule: the texts are for logs and hold no address and nothing that the upstream sent.
"""

from __future__ import annotations


class UpstreamError(Exception):
    """The upstream did not give a usable answer."""


class UpstreamBusy(UpstreamError):
    """All connections that the origin may have are in use, and the line is too long or did not move in time."""


class NeverAnswered(UpstreamError):
    """The connection ended before the first byte of an answer.

    :ivar sent_bytes: how many bytes of the request had been handed to the socket.
    :ivar reused: whether the connection had served a request before.
    """

    def __init__(self, sent_bytes: int, reused: bool) -> None:
        super().__init__("the connection ended before an answer began")
        self.sent_bytes = sent_bytes
        self.reused = reused


class InvalidAnswer(UpstreamError):
    """What the upstream sent is not an HTTP/1.1 answer that can be relayed."""


class AnswerCut(UpstreamError):
    """The connection ended in the middle of an answer."""


class FirstByteTimeout(UpstreamError):
    """No answer began in time."""


class IdleTimeout(UpstreamError):
    """The answer stopped coming for too long."""


class UploadTimeout(UpstreamError):
    """The upstream took no byte of the request for too long while bytes waited for it."""
