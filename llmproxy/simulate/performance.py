"""One answer on its connection: the head after its delay, the steps at their pace, the end asked for.

The rules kept here: the caller's pace wins (`pauseProducing` stops the timer, nothing is made ahead); when
the caller leaves, every timer stops at once; a fault looks on the wire like the real thing.
"""

from collections.abc import Callable, Iterator
from http import HTTPStatus
from typing import Final

from twisted.internet.interfaces import IDelayedCall, IPushProducer, IReactorTime
from twisted.python.failure import Failure
from zope.interface import implementer

from llmproxy.core.fields import Fields, serialize
from llmproxy.simulate.served import Served
from llmproxy.simulate.steps import GARBAGE, Act, Step
from llmproxy.simulate.wishes import HEAD, Wishes
from llmproxy.wire.request import Request

RESET_AFTER_S: Final = 0.02
"""A reset takes back what the kernel has not sent; so long the bytes before it have to get through."""
BURST: Final = 16
"""Writes in one turn of the reactor where no pause between them is asked for."""


def reason_of(status: int) -> bytes:
    """The reason phrase of a status (RFC 9110 section 15); 529 is the providers' own."""
    try:
        return HTTPStatus(status).phrase.encode()
    except ValueError:
        return b"Overloaded" if status == 529 else b"Unknown"


@implementer(IPushProducer)
class Performance:
    """Answers one request. `ended` is called once, with whether the caller left before the end.

    It is made when the request's head is in, so that a caller who leaves during the upload is noticed too.
    """

    def __init__(self, request: Request, clock: IReactorTime, ended: Callable[[bool], None]) -> None:
        self._request = request
        self._clock = clock
        self._ended: Callable[[bool], None] | None = ended
        self._wishes = Wishes()
        self._steps: Iterator[Step] = iter(())
        self._pause_s = 0.0
        self._timer: IDelayedCall | None = None
        self._paused = False
        self._performing = False
        self._raw = False
        self._served: Served | None = None
        request.notifyFinish().addErrback(self._gone)

    def perform(
        self,
        status: int,
        fields: Fields,
        steps: Iterator[Step],
        wishes: Wishes,
        *,
        streamed: bool,
        served: Served | None = None,
    ) -> None:
        """Answer after the delay. `fields` hold a Content-Length where the body is whole.

        `served` is told what of the body was written, and whether all of it was.
        """
        self._steps, self._wishes, self._served = steps, wishes, served
        self._timer = self._clock.callLater(wishes.delay_s, self._begin, status, fields, streamed)

    def _begin(self, status: int, fields: Fields, streamed: bool) -> None:
        self._timer = None
        wishes, request = self._wishes, self._request
        if wishes.silence == HEAD:
            return  # until the caller leaves
        if wishes.reset == HEAD:
            self._act(Act.RESET)
            return
        if wishes.garbage == HEAD:
            self._raw = True
            self._act(Act.GARBAGE)
            return
        if wishes.close or wishes.garbage is not None:
            # Garbage needs a body whose end is not counted in bytes, or it would be part of the body.
            fields = [pair for pair in fields if pair[0].lower() != b"content-length"]
        if wishes.close and request.channel is not None:
            self._raw = True
            request.head_written = True
            start_line = b"HTTP/1.1 %d %b" % (status, reason_of(status))
            request.channel.write(serialize(start_line, [*fields, (b"Connection", b"close")]))
        else:
            request.write_head(status, reason_of(status), fields)
        self._pause_s = wishes.pause_s if streamed or wishes.chunk is not None else 0.0
        self._performing = True
        request.registerProducer(self, True)
        if not self._paused:
            self._step()

    def _step(self) -> None:
        self._timer = None
        for _ in range(BURST):
            step = next(self._steps, None)
            if step is None:
                self._finish()
                return
            if isinstance(step, Act):
                self._act(step)
                return
            self._write(step)
            # A write may have filled the caller's buffer, or found that the caller is gone.
            if self._paused or self._ended is None:
                return
            if self._pause_s:
                break
        self._timer = self._clock.callLater(self._pause_s, self._step)

    def _write(self, data: bytes) -> None:
        channel = self._request.channel
        if self._raw:
            if channel is not None and self._request.method != b"HEAD":
                channel.write(data)
        else:
            self._request.write(data)
        # A caller who is found gone by this very write did not get it.
        if self._served is not None and self._ended is not None:
            self._served.sent(len(data))

    def _finish(self) -> None:
        if self._served is not None:
            self._served.finished()
        self._settle(gone=False)
        if self._raw:
            self._close()
        else:
            self._request.unregisterProducer()
            self._request.finish()

    def _act(self, act: Act) -> None:
        self._performing = False  # the caller's pace can bring nothing back
        match act:
            case Act.SILENCE:
                return
            case Act.GARBAGE:
                channel = self._request.channel
                if channel is not None:
                    channel.write(GARBAGE)
                self._settle(gone=False)
                self._close()
            case Act.CUT:
                self._settle(gone=False)
                self._close()
            case Act.RESET:
                self._timer = self._clock.callLater(RESET_AFTER_S, self._reset)

    def _reset(self) -> None:
        self._timer = None
        self._settle(gone=False)
        if self._request.channel is not None:
            self._request.channel.abortConnection()

    def _close(self) -> None:
        if self._request.channel is not None:
            self._request.channel.loseConnection()

    def _settle(self, *, gone: bool) -> None:
        self._stop_timer()
        ended, self._ended = self._ended, None
        if ended is not None:
            ended(gone)

    def _gone(self, reason: Failure) -> None:
        """The connection was lost before the answer's end."""
        self._settle(gone=True)
        self._steps = iter(())

    def _stop_timer(self) -> None:
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._timer = None

    # IPushProducer: what the connection says about the caller's pace

    def pauseProducing(self) -> None:
        """The caller does not read."""
        self._paused = True
        if self._performing:
            self._stop_timer()

    def resumeProducing(self) -> None:
        """The caller reads again."""
        self._paused = False
        if self._performing and self._timer is None and self._ended is not None:
            self._timer = self._clock.callLater(0, self._step)

    def stopProducing(self) -> None:
        """The connection is lost."""
        self._settle(gone=True)
