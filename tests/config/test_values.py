"""Tests of llmproxy.config.values: what one value may be."""

from ipaddress import ip_network

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from llmproxy.config.values import (
    BOOLEAN,
    FIELD_NAME,
    METHOD,
    NETWORK,
    ORIGIN,
    PORT,
    REDIS_ADDRESS,
    REDIS_URL,
    SECONDS,
    SECONDS_OR_OFF,
    URL,
    Value,
    choice,
    integer,
    text,
)


class ValueTests(SynchronousTestCase):
    def takes(self, kind: Value, **expected: object) -> None:
        for given_text, value in expected.items():
            with self.subTest(given_text):
                self.assertEqual(kind.parse(given_text), value)

    def refuses(self, kind: Value, *texts: str) -> None:
        for given_text in texts:
            with self.subTest(given_text):
                self.assertRaises(ValueError, kind.parse, given_text)

    def test_booleans(self) -> None:
        """The words of YAML, in any case, and nothing else."""
        self.takes(BOOLEAN, true=True, YES=True, On=True, false=False, no=False, OFF=False)
        self.refuses(BOOLEAN, "", "1", "0", "y", "t", "truee")

    def test_whole_numbers(self) -> None:
        """Plain decimals in their range; no octal surprises, no fractions, no endless digits."""
        kind = integer(0, 10_000_000)
        self.takes(kind, **{"0": 0, "5": 5, "+5": 5, "1_000": 1000, "10000000": 10_000_000})
        self.refuses(kind, "-1", "10000001", "1.0", "1e3", "010", "0x10", "1__0", "_1", "1_", "", "true", "\uff19")
        self.refuses(integer(0), "9" * 5000)
        self.takes(integer(-1), **{"-1": -1})
        self.refuses(integer(-1), "-2")

    def test_seconds(self) -> None:
        """Above zero and finite: not a number, infinity, zero and less are refused."""
        self.takes(SECONDS, **{"45": 45.0, "0.5": 0.5, "1e3": 1000.0, "1_000": 1000.0})
        self.refuses(SECONDS, "0", "-1", "-0.0", ".nan", "nan", "inf", ".inf", "1e999", "true", "", "1:30", "5s")

    def test_seconds_that_may_be_off(self) -> None:
        """The same with zero, which is no limit; what is left out is not zero."""
        self.takes(SECONDS_OR_OFF, **{"0": 0.0, "0.0": 0.0, "0.5": 0.5, "600": 600.0})
        self.assertEqual(str(SECONDS_OR_OFF.parse("-0")), "0.0")
        self.refuses(SECONDS_OR_OFF, "-1", "-0.1", ".nan", "nan", "inf", ".inf", "1e999", "true", "off", "", "5s")

    def test_choices(self) -> None:
        """Names in any case; a wrong one is told the nearest."""
        kind = choice("warn", "error", also={"warning": "warn"})
        self.takes(kind, warn="warn", WARNING="warn", Error="error")
        error = self.assertRaises(ValueError, kind.parse, "eror")
        self.assertEqual(str(error), "must be one of warn, error; did you mean error?")

    def test_text(self) -> None:
        """One printable line; empty is not set."""
        kind = text()
        self.takes(kind, **{"a b": "a b", "é": "é", "": None})
        self.refuses(kind, "a\nb", "a\x00", "\x7f", "\udc80")

    def test_ports(self) -> None:
        """A number of a port, or an endpoint taken as it is."""
        endpoints = (
            "tcp:9002:interface=127.0.0.1",
            "unix:/run/x.sock",
            "ssl:443:privateKey=k.pem",
            "tls:a:b",
        )
        self.takes(PORT, **{"0": 0, "9002": 9002, "65535": 65535}, **{one: one for one in endpoints})
        self.refuses(PORT, "65536", "-1", "", "http", ":9002", "127.0.0.1:9002", "9" * 400, "9002 ", "unix:", "a:\n")

    def test_urls(self) -> None:
        """Scheme, host, perhaps port and path prefix; the slash at the end goes."""
        same = (
            "https://api.openai.com",
            "http://127.0.0.1:9010",
            "http://[::1]:9010",
            "https://gateway.example/v1/account/openai",
            "http://my_service:80/a%20b/c:d",
            "https://with.a.dot./x",
        )
        self.takes(URL, **{one: one for one in same})
        self.takes(
            URL,
            **{
                "": None,
                "https://a.example/": "https://a.example",
                "https://a.example/x//": "https://a.example/x",
                "HTTPS://A.Example/Path": "https://a.example/Path",
            },
        )

    def test_urls_that_are_refused(self) -> None:
        """Each part that does not belong there is named, and the value is not shown."""
        for given_text, words in (
            ("api.openai.com", "must begin with http:// or https://"),
            ("ftp://a.example", "must begin with http:// or https://"),
            ("http:a.example", "must begin with http:// or https://"),
            ("https:///path", "must name a host"),
            ("https://", "must name a host"),
            ("https://a b", "printable ASCII"),
            ("https://a.example/\n", "printable ASCII"),
            ("https://a.exa\tmple", "printable ASCII"),
            ("https://a.example/é", "printable ASCII"),
            ("https://u:p@a.example", "must not carry a user name"),
            ("https://u@a.example", "must not carry a user name"),
            ("https://a.example?key=1", "no query"),
            ("https://a.example/?", "no query"),
            ("https://a.example#", "no fragment"),
            ("https://a.example:0", "port that is not between"),
            ("https://a.example:65536", "port that is not between"),
            ("https://a.example:x", "must name a host"),
            ("https://a.example:", "must name a host"),
            ("https://-a.example", "must name a host"),
            ("https://a..b", "must name a host"),
            ("https://.a", "must name a host"),
            ("https://a.-b", "must name a host"),
            ("https://" + "a" * 64 + ".b", "must name a host"),
            ("https://[::1", "is not a URL"),
            ("https://[1.2.3]", "not a"),
            ("https://a.example/../b", "no plain prefix"),
            ("https://a.example//b", "no plain prefix"),
            ("https://a.example/%zz", "no plain prefix"),
            ("https://a.example/a\\b", "no plain prefix"),
        ):
            with self.subTest(given_text):
                error = self.assertRaises(ValueError, URL.parse, given_text)
                self.assertIn(words, str(error))

    @given(st.text(max_size=40))
    def test_urls_never_break(self, rest: str) -> None:
        """Any text behind the scheme is taken without what must not be in it, or refused in words."""
        try:
            url = URL.parse(f"http://{rest}")
        except ValueError as error:
            self.assertTrue(str(error))
        else:
            self.assertNoCharacters(str(url), "@?# \t\r\n\x00")

    def assertNoCharacters(self, value: str, characters: str) -> None:
        self.assertEqual([c for c in characters if c in value], [])

    def test_networks(self) -> None:
        """Addresses and networks of both families; an address with a mask is told its network."""
        self.takes(NETWORK, **{one: ip_network(one) for one in ("10.0.0.0/8", "1.2.3.4", "::1", "fd00::/8")})
        self.refuses(NETWORK, "10.0.0.0/33", "localhost", "", "1.2.3")
        error = self.assertRaises(ValueError, NETWORK.parse, "10.1.2.3/8")
        self.assertIn("did you mean 10.0.0.0/8?", str(error))

    def test_origins(self) -> None:
        """As a browser sends them: in lower case, without a path."""
        same = ("*", "null", "https://app.example.com", "http://localhost:3000", "app://obsidian.md")
        self.takes(ORIGIN, **{one: one for one in same})
        self.refuses(ORIGIN, "https://a.example/", "https://A.example", "a.example", "", "https://")

    def test_names_of_methods_and_fields(self) -> None:
        """Tokens of RFC 9110; nothing that could end a header field and begin another."""
        self.takes(METHOD, post="POST")
        self.takes(FIELD_NAME, **{"*": "*", "X-A_b": "X-A_b"})
        for kind in (METHOD, FIELD_NAME):
            self.refuses(kind, "", "a b", "a:b", "a\r\nb: c", "é", "a,b")

    def test_redis(self) -> None:
        """An address with or without port; a URL with one of Redis's two schemes and a host."""
        self.takes(REDIS_ADDRESS, **{"localhost:6379": "localhost:6379", "redis": "redis", "": None})
        self.refuses(REDIS_ADDRESS, "redis://a", "a:b", "a:99999", "a b")
        self.takes(REDIS_URL, **{one: one for one in ("redis://:pw@h:6379/0", "rediss://h")})
        self.refuses(REDIS_URL, "http://h", "redis://", "redis://[", "h:6379", "redis:///0")
