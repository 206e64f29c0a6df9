"""Where a message ends, and which heads are refused."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from llmproxy.core import framing
from llmproxy.core.fields import Fields, index
from llmproxy.core.framing import BodyFraming, FramingError

_CHUNKED = (b"Transfer-Encoding", b"chunked")


def _length(value: bytes) -> tuple[bytes, bytes]:
    return (b"Content-Length", value)


_BAD_LENGTHS = (
    b"",
    b"+5",
    b"-5",
    b"0x5",
    b"1_0",
    b"5 5",
    b"5,5",
    b"5.0",
    b"\xc2\xa05",
    b"\xd9\xa5",
    b"5\x00",
    b"9" * 20,
    b"5\n",
)


class RequestBodies(SynchronousTestCase):
    """The body of a request."""

    def of(self, *fields: tuple[bytes, bytes], version: bytes = b"1.1") -> BodyFraming:
        """How it ends."""
        return framing.request_body(version, index(list(fields)))

    def refused(self, *fields: tuple[bytes, bytes], version: bytes = b"1.1") -> int:
        """The status of the refusal."""
        return self.assertRaises(FramingError, self.of, *fields, version=version).status  # type: ignore[no-any-return]

    def test_kinds(self) -> None:
        """None, a length, or chunks."""
        self.assertIs(self.of(), framing.NO_BODY)
        self.assertEqual(self.of(_length(b"0")), BodyFraming(framing.LENGTH, 0))
        self.assertEqual(self.of(_length(b" 0012\t")), BodyFraming(framing.LENGTH, 12))
        self.assertIs(self.of((b"transfer-ENCODING", b" Chunked ")), framing.CHUNKED_BODY)

    def test_lengths(self) -> None:
        """A length is one plain number: not what Python's int() takes, not a list, not two fields that agree."""
        for value in _BAD_LENGTHS:
            self.assertEqual(self.refused(_length(value)), 400, value)
        self.assertEqual(self.refused(_length(b"5"), _length(b"5")), 400)
        self.assertEqual(self.refused(_length(b"5"), (b"content-length", b"6")), 400)

    def test_both(self) -> None:
        """A length beside chunks is how requests are smuggled: refused in either order."""
        self.assertEqual(self.refused(_length(b"5"), _CHUNKED), 400)
        self.assertEqual(self.refused(_CHUNKED, _length(b"5")), 400)

    def test_codings(self) -> None:
        """Chunked, once, alone; anything else is not understood here."""
        for value in (
            b"gzip",
            b"gzip, chunked",
            b"chunked, gzip",
            b"chunked, chunked",
            b",chunked",
            b"",
            b'"chunked"',
            b"x",
        ):
            self.assertEqual(self.refused((b"Transfer-Encoding", value)), 501, value)
        self.assertEqual(self.refused(_CHUNKED, _CHUNKED), 501)

    def test_http_1_0(self) -> None:
        """HTTP/1.0 has no transfer codings."""
        self.assertEqual(self.refused(_CHUNKED, version=b"1.0"), 400)
        self.assertEqual(self.of(_length(b"5"), version=b"1.0"), BodyFraming(framing.LENGTH, 5))

    @given(st.binary(max_size=6))
    def test_any_length(self, value: bytes) -> None:
        """Any value is either exactly its digits or refused."""
        try:
            body = self.of(_length(value))
        except FramingError:
            return
        self.assertEqual(b"%d" % body.length_bytes, value.strip(b" \t").lstrip(b"0") or b"0")


class ResponseBodies(SynchronousTestCase):
    """The body of an answer."""

    def of(self, method: bytes, status: int, *fields: tuple[bytes, bytes]) -> BodyFraming:
        """How it ends."""
        return framing.response_body(method, status, index(list(fields)))

    def test_kinds(self) -> None:
        """A length, chunks, or the end of the connection."""
        self.assertEqual(self.of(b"GET", 200, _length(b"5")), BodyFraming(framing.LENGTH, 5))
        self.assertIs(self.of(b"GET", 200, _CHUNKED), framing.CHUNKED_BODY)
        self.assertIs(self.of(b"POST", 500), framing.UNTIL_CLOSE_BODY)

    def test_none(self) -> None:
        """HEAD, 1xx, 204 and 304 have none, whatever their fields announce."""
        for method, status in (
            (b"HEAD", 200),
            (b"HEAD", 404),
            (b"GET", 204),
            (b"GET", 304),
            (b"GET", 100),
            (b"GET", 103),
        ):
            for fields in ([], [_length(b"5")], [_CHUNKED]):
                self.assertIs(self.of(method, status, *fields), framing.NO_BODY)

    def test_untrusted(self) -> None:
        """An answer whose end is in doubt is refused, also where it would have no body."""
        for fields in (
            [_length(b"5"), _length(b"6")],
            [_length(b"5"), _CHUNKED],
            [(b"Transfer-Encoding", b"gzip, chunked")],
            [_CHUNKED, _CHUNKED],
            *([_length(value)] for value in _BAD_LENGTHS),
        ):
            error = self.assertRaises(FramingError, self.of, b"GET", 200, *fields)
            self.assertEqual(error.status, 502)
        self.assertRaises(FramingError, self.of, b"HEAD", 200, _length(b"x"))


class Heads(SynchronousTestCase):
    """The head of a request as a whole."""

    def judge(
        self, fields: Fields | None = None, *, method: bytes = b"GET", target: bytes = b"/", version: bytes = b"1.1"
    ) -> BodyFraming:
        """What is made of it."""
        return framing.judge_request(method, target, version, index([(b"Host", b"h")] if fields is None else fields))

    def refused(
        self, fields: Fields | None = None, *, method: bytes = b"GET", target: bytes = b"/", version: bytes = b"1.1"
    ) -> int:
        """The status of the refusal, whose text repeats nothing that was sent."""
        error = self.assertRaises(FramingError, self.judge, fields, method=method, target=target, version=version)
        self.assertNotIn("secret", str(error))
        return error.status  # type: ignore[no-any-return]

    def test_hosts(self) -> None:
        """Exactly one Host, which is a host with an optional port."""
        for host in (b"h", b"api.test:8080", b"[::1]:80", b"192.0.2.1", b" h\t", b"", b"h:", b"xn--a", b"a_b", b"%41"):
            self.assertIs(self.judge([(b"Host", host)]), framing.NO_BODY)
        for host in (
            b"a b",
            b"a/secret",
            b"u@secret",
            b"h:x",
            b"h:123456",
            b"[::1",
            b"::1",
            b"a\x00",
            b"h?",
            b"a\\b",
            b"\xe4",
            b"h\n",
        ):
            self.assertEqual(self.refused([(b"Host", host)]), 400, host)
        for fields in (
            [],
            [(b"Host", b"a"), (b"host", b"a")],
            [(b"Host", b"a"), (b"Host", b"")],
            [(b"Host", b""), (b"Host", b"")],
        ):
            self.assertEqual(self.refused(fields), 400, fields)
        self.assertIs(self.judge([], version=b"1.0"), framing.NO_BODY)

    def test_targets(self) -> None:
        """A path; `*` for OPTIONS; no absolute form, whose host could choose where a request goes; no CONNECT."""
        self.judge(method=b"OPTIONS", target=b"*")
        for method, target, status in (
            (b"GET", b"*", 400),
            (b"GET", b"http://secret/", 400),
            (b"GET", b"secret", 400),
            (b"GET", b"", 400),
            (b"GET", b"/secret here", 400),
            (b"CONNECT", b"secret:443", 501),
        ):
            self.assertEqual(self.refused(method=method, target=target), status, target)

    def test_versions(self) -> None:
        """HTTP/1.1 and HTTP/1.0."""
        for version in (b"0.9", b"1.2", b"2.0", b"3.0", b""):
            self.assertEqual(self.refused(version=version), 505)

    def test_expectations(self) -> None:
        """100-continue, in any case; any other cannot be met."""
        self.judge([(b"Host", b"h"), (b"Expect", b"100-Continue")])
        for value in (b"secret", b"100-continue, secret", b"", b"100-continue=1"):
            self.assertEqual(self.refused([(b"Host", b"h"), (b"Expect", value)]), 417, value)

    def test_body(self) -> None:
        """And how its body ends."""
        self.assertEqual(self.judge([(b"Host", b"h"), _length(b"5")]), BodyFraming(framing.LENGTH, 5))
        self.assertEqual(self.refused([(b"Host", b"h"), _length(b"secret")]), 400)


class Closing(SynchronousTestCase):
    """Whether the connection ends with the message."""

    def test_close(self) -> None:
        """If the word is there, in whatever way it is written, or if it is HTTP/1.0."""
        for version, value, closes in (
            (b"1.1", None, False),
            (b"1.1", b"keep-alive", False),
            (b"1.1", b"close", True),
            (b"1.1", b"Close", True),
            (b"1.1", b"x,close ,y", True),
            (b"1.1", b"closed", False),
            (b"1.1", b"x close", False),
            (b"1.0", None, True),
            (b"1.0", b"keep-alive", True),
        ):
            fields = [] if value is None else [(b"Connection", value)]
            self.assertEqual(framing.wants_close(version, index(fields)), closes, value)
        self.assertTrue(framing.wants_close(b"1.1", index([(b"Connection", b"x"), (b"connection", b"close")])))
