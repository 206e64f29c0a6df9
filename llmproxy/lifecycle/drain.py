"""The end of service: what is under way ends in peace, within its time.

The steps, each of which is logged: balancers are told (``/health/ready``), for ``server.drain_delay_s`` all else goes
on; listening ends, connections without a request close; the rest is waited for, until ``server.drain_timeout_s`` after
the beginning. The rule: it ends once, and whoever asks a second time waits no longer.
"""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

from llmproxy.web.site import ProxySite

TELL_S = 30.0
"""How often it is said what is still waited for."""


class Drain:
    """One end of service.

    :param stop_listening: closes the port.
    :param over: called once, when nothing is left, or nothing more is to be waited for.
    :param status: is told in a few words what is waited for.
    """

    _log = Logger()

    def __init__(
        self,
        site: ProxySite,
        clock: IReactorTime,
        stop_listening: Callable[[], object],
        over: Callable[[], None],
        status: Callable[[str], None],
    ) -> None:
        self._site = site
        self._clock = clock
        self._stop_listening = stop_listening
        self._over = over
        self._status = status
        self._timers: dict[str, IDelayedCall] = {}
        self._is_over = False

    def begin(self, cause: str) -> None:
        """Take the first step. ``cause``: whose wish it is, for the log."""
        limits = self._site.limits
        self._site.begin_drain()
        at_most = f"{limits.drain_timeout_s:g} s"
        within = f"for at most {at_most}" if limits.drain_timeout_s else "for as long as they take"
        listening = f"listening for {limits.drain_delay_s:g} s more; " if limits.drain_delay_s else ""
        self._say(
            "{cause}: stopping; {listening}waiting for {left} {within}", cause, listening=listening, within=within
        )
        if limits.drain_timeout_s:
            self._later("deadline", limits.drain_timeout_s, self.cut, f"server.drain_timeout_s ({at_most}) is over")
        if limits.drain_delay_s:
            self._later("delay", limits.drain_delay_s, self._close)
        else:
            self._close()

    def cut(self, cause: str) -> None:
        """Wait no longer."""
        if not self._is_over:
            self._log.warn("{cause}: {left} cut", cause=cause, left=self._left())
            self._end()

    def _close(self) -> None:
        self._timers.pop("delay", None)
        self._stop_listening()
        self._site.close_idle()
        self._site.when_drained().addCallback(self._drained)
        if not self._is_over:
            self._tell()

    def _tell(self) -> None:
        self._say("no longer listening; waiting for {left}")
        self._later("tell", TELL_S, self._tell)

    def _drained(self, _: object) -> None:
        if not self._is_over:
            self._log.info("no connection is left")
            self._end()

    def _end(self) -> None:
        self._is_over = True
        timers, self._timers = self._timers, {}
        for timer in timers.values():
            if timer.active():
                timer.cancel()
        self._over()

    def _later(self, name: str, after_s: float, call: Callable[..., None], *arguments: str) -> None:
        self._timers[name] = self._clock.callLater(after_s, call, *arguments)

    def _left(self) -> str:
        channels = self._site.channels
        requests = sum(len(channel.requests()) for channel in channels)
        return f"{_count(requests, 'request')} on {_count(len(channels), 'connection')}"

    def _say(self, words: str, cause: str = "", **more: str) -> None:
        left = self._left()
        self._log.info(words, cause=cause, left=left, **more)
        self._status(f"stopping; waiting for {left}")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
