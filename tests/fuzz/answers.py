"""One answer of a provider, as the caller has it, beside what h11 reads in the provider's own bytes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from tests.fuzz.laboratory import Outcome, ProviderLaboratory
from tests.fuzz.readers import Answer, lines_are_clean, read_answers

RELAYED = "relayed"
REFUSED = "502"
CUT = "cut"

CASES = {
    "GET": b"GET /openai/v1/models HTTP/1.1\r\nHost: proxy.test\r\n\r\n",
    "HEAD": b"HEAD /openai/v1/models HTTP/1.1\r\nHost: proxy.test\r\n\r\n",
    "POST": b"POST /openai/v1/chat/completions HTTP/1.1\r\nHost: proxy.test\r\nContent-Length: 2\r\n\r\n{}",
    "POST in HTTP/1.0": b"POST /openai/v1/completions HTTP/1.0\r\nContent-Length: 2\r\n\r\n{}",
}
"""What the caller asks. The first word is the method."""

_OWN = (
    b"access-control-allow-origin",
    b"connection",
    b"server-timing",
    b"transfer-encoding",
    b"x-accel-buffering",
    b"x-llm-proxy-request-id",
)
"""Fields that the proxy may put on an answer that it relays."""

_INTERIM = re.compile(rb"[\r\n]*HTTP/1\.1 1[0-9][0-9][^\r\n]*\r\n(?:[^\r\n]+\r\n)*\r\n")


@dataclass
class Ask:
    """What became of one request.

    came: RELAYED, REFUSED or CUT. second: the body of the answer to the next request on the caller's connection; None
    if it was closed.
    """

    method: bytes
    outcome: Outcome
    came: str
    second: bytes | None
    ended: bool

    def answer(self) -> Answer | None:
        """What the caller has of it."""
        return self.outcome.answers[0] if self.outcome.answers else None

    def digest(self) -> object:
        """What may not depend on how the answer was split into reads. How much of a cut body comes may."""
        answer = self.answer()
        ends = [(event["status"], event["error_class"]) for event in self.outcome.events[:1]]
        if answer is None or self.came == CUT:
            return self.came, self.second, ends
        fields = [pair for pair in answer.fields if pair[0] != b"Date"]
        return self.came, self.second, ends, answer.status, answer.reason, fields, answer.body, answer.trailers


def ask(name: str, pieces: Sequence[bytes], ends: bool) -> Ask:
    """Ask CASES[name], let the provider say `pieces`, and ask again."""
    outcome, heard = ProviderLaboratory().run(CASES[name], pieces, ends)
    method = name.partition(" ")[0].encode()
    answer = outcome.answers[0] if outcome.answers else None
    if answer is None or not answer.whole:
        came = CUT
    elif answer.get(b"x-llm-proxy-error-source") == b"upstream" and answer.status == 502:
        came = REFUSED
    else:
        came = RELAYED
    second = None
    if heard is not None:
        answers, error = read_answers(heard, [b"GET"], closed=False)
        assert error is None, f"the second answer: {error}"
        assert len(answers) == 1, f"the second request got {heard!r}"
        second = answers[0].body
    return Ask(method, outcome, came, second, ends)


def final(raw: bytes) -> bytes:
    """An answer without the interim ones and the empty lines before it.

    llhttp skips the lines, as many clients do, and h11 does not; and h11 judges fields about a body that no interim
    answer has.
    """
    at = 0
    while found := _INTERIM.match(raw, at):
        at = found.end()
    return raw[at:].lstrip(b"\r\n")


def shows(asked: Ask, raw: bytes) -> list[str]:
    """What is wrong with what the caller has, if the provider has said `raw`."""
    answer = asked.answer()
    wrong = []
    if not lines_are_clean(asked.outcome.heard):
        wrong.append("a line of the head has a NUL, a CR or an LF within it")
    if asked.second not in (None, b"SECOND"):
        wrong.append(f"the next request got {asked.second!r}")
    theirs, error = read_answers(final(raw), [asked.method], closed=True)
    if asked.came == RELAYED and answer is not None:
        said = theirs[0] if theirs else None
        if (said is None or not said.whole) and (asked.method == b"HEAD" or answer.status in (204, 304)):
            pass  # RFC 9112 6.3: it ends with its head, whatever that says of a body. h11 judges it nevertheless.
        elif said is None or not said.whole:
            wrong.append(f"h11 reads no whole answer there: {error}")
        else:
            if (said.status, said.reason, said.body) != (answer.status, answer.reason, answer.body):
                wrong.append(f"h11 reads {said}, and the caller got {answer}")
            more = [pair for pair in answer.fields if pair not in said.fields and pair[0].lower() not in _OWN]
            if more:
                wrong.append(f"the provider has not said {more}")
    elif asked.came == CUT and answer is not None and theirs and not theirs[0].body.startswith(answer.body):
        wrong.append(f"h11 reads {theirs[0].body!r}, and the caller got of it {answer.body!r}")
    return wrong
