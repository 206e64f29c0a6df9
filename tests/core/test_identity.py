"""Who is asking."""

from __future__ import annotations

from ipaddress import ip_network

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from llmproxy.core.fields import Fields
from llmproxy.core.identity import (
    CredentialIds,
    client_address,
    credential_of,
    short_credential_id,
    user_of,
)

_PLACES: list[tuple[Fields, bytes]] = [
    ([(b"Authorization", b"Bearer k1")], b""),
    ([(b"x-api-key", b"k2")], b""),
    ([(b"api-key", b"k3")], b""),
    ([(b"x-goog-api-key", b"k4")], b""),
    ([], b"key=k5"),
    ([], b"access_token=k6"),
    ([(b"Sec-WebSocket-Protocol", b"realtime, openai-insecure-api-key.k7, other")], b""),
]
_KEYS = [b"k1", b"k2", b"k3", b"k4", b"k5", b"k6", b"k7"]
_TRUSTED = (ip_network("10.0.0.0/8"), ip_network("fd00::/8"))


class Credential(SynchronousTestCase):
    """Where keys are."""

    def test_every_place(self) -> None:
        """The key is found in each place in which some client puts it."""
        for (fields, query), key in zip(_PLACES, _KEYS, strict=True):
            self.assertEqual(credential_of(fields, query), key)
            self.assertEqual(credential_of([(name.upper(), value) for name, value in fields], query), key)

    def test_order(self) -> None:
        """Of two credentials in different places the same one counts always, in the documented order."""
        for first in range(len(_PLACES)):
            for second in range(first + 1, len(_PLACES)):
                fields = _PLACES[second][0] + _PLACES[first][0]
                query = b"&".join(part for part in (_PLACES[second][1], _PLACES[first][1]) if part)
                self.assertEqual(credential_of(fields, query), _KEYS[first])

    def test_schemes(self) -> None:
        """What follows the scheme is the credential, whatever the scheme; without one, the whole value."""
        for value, key in (
            (b"Bearer sk-a", b"sk-a"),
            (b"bearer  sk-a ", b"sk-a"),
            (b"Basic dTpw", b"dTpw"),
            (b"Custom a b", b"a b"),
            (b"sk-a", b"sk-a"),
        ):
            self.assertEqual(credential_of([(b"authorization", value)], b""), key)

    def test_none(self) -> None:
        """An empty field, a scheme alone or a look-alike is no credential."""
        fields: Fields = [
            (b"Authorization", b"Bearer "),
            (b"Authorization", b"basic"),
            (b"Authorization", b""),
            (b"x-api-key", b" "),
            (b"x-abc-key", b"k"),
            (b"Sec-WebSocket-Protocol", b"realtime, openai-insecure-api-key."),
        ]
        self.assertIsNone(credential_of(fields, b"monkey=1&key=&key&access_token"))

    def test_empty_then_real(self) -> None:
        """A second field counts where the first is empty."""
        fields: Fields = [(b"Authorization", b"Bearer"), (b"Authorization", b"Bearer k")]
        self.assertEqual(credential_of(fields, b""), b"k")

    def test_query(self) -> None:
        """The key is decoded as the provider decodes it, also where its name is written with escapes."""
        self.assertEqual(credential_of([], b"alt=sse&k%65y=AIza%2D1"), b"AIza-1")


class Ids(SynchronousTestCase):
    """Ids of credentials."""

    def test_same_secret_same_id(self) -> None:
        """One secret gives the same id on every machine; another secret gives another."""
        one = CredentialIds(b"s1").credential_id(b"sk-a")
        self.assertEqual(one, CredentialIds(b"s1").credential_id(b"sk-a"))
        self.assertNotEqual(one, CredentialIds(b"s2").credential_id(b"sk-a"))
        self.assertNotEqual(one, CredentialIds(b"s1").credential_id(b"sk-b"))

    def test_is_hmac_sha256(self) -> None:
        """The id is plain HMAC-SHA256 (RFC 4231, test case 2), so other tools can make it too."""
        self.assertEqual(
            CredentialIds(b"Jefe").credential_id(b"what do ya want for nothing?"),
            "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843",
        )
        self.assertEqual(short_credential_id("5bdcc146bf60754e6a04"), "5bdcc146bf60")

    def test_secret_is_needed_and_hidden(self) -> None:
        """An empty secret is refused; the secret is not in the repr."""
        self.assertRaises(ValueError, CredentialIds, b"")
        self.assertNotIn("hidden", repr(CredentialIds(b"hidden")))


def _forwarded(*values: bytes) -> Fields:
    return [(b"X-Forwarded-For", value) for value in values]


class Address(SynchronousTestCase):
    """The caller's address."""

    def test_no_trust(self) -> None:
        """Without trusted proxies nobody can pretend to be at another address."""
        self.assertEqual(client_address("1.2.3.4", _forwarded(b"9.9.9.9"), ()), "1.2.3.4")
        self.assertEqual(client_address("1.2.3.4", _forwarded(b"9.9.9.9"), _TRUSTED), "1.2.3.4")

    def test_trusted_chain(self) -> None:
        """Behind trusted proxies it is the right-most address that none of them has."""
        fields = _forwarded(b"6.6.6.6, 5.5.5.5", b"10.0.0.7,10.0.0.8")
        self.assertEqual(client_address("10.0.0.1", fields, _TRUSTED), "5.5.5.5")

    def test_all_trusted(self) -> None:
        """A call from within the trusted network has the left-most address."""
        self.assertEqual(client_address("10.0.0.1", _forwarded(b"10.0.0.3, 10.0.0.2"), _TRUSTED), "10.0.0.3")
        self.assertEqual(client_address("10.0.0.1", [], _TRUSTED), "10.0.0.1")

    def test_no_ports(self) -> None:
        """A port, which changes with every connection, is never part of it."""
        for hop, address in (
            (b"1.2.3.4:5678", "1.2.3.4"),
            (b"[2001:db8::1]:443", "2001:db8::1"),
            (b"2001:DB8:0::1", "2001:db8::1"),
            (b"[2001:db8::1]", "2001:db8::1"),
        ):
            self.assertEqual(client_address("fd00::1", _forwarded(hop), _TRUSTED), address)

    def test_garbage(self) -> None:
        """What is no address ends the chain: the last proxy that is certain counts."""
        for hop in (b"unknown", b"", b"1.2.3.4.5", b"evil\r\n", b"\xff", b"1.2.3.4:x"):
            self.assertEqual(client_address("10.0.0.1", _forwarded(b"7.7.7.7, " + hop), _TRUSTED), "10.0.0.1")

    def test_mapped(self) -> None:
        """An IPv4 caller on an IPv6 socket is the same caller."""
        self.assertEqual(client_address("::ffff:1.2.3.4", [], ()), "1.2.3.4")
        self.assertEqual(client_address("::ffff:10.0.0.1", _forwarded(b"1.2.3.4"), _TRUSTED), "1.2.3.4")

    def test_unix_socket(self) -> None:
        """A peer without an address, as on a Unix socket, is no reason to fail."""
        self.assertEqual(client_address("/run/a\n.sock", _forwarded(b"1.2.3.4"), _TRUSTED), "/run/a?.sock")
        self.assertEqual(client_address("", [], ()), "")


class User(SynchronousTestCase):
    """The order in which the user is looked for."""

    def _user(self, meta: str | None = None, header: bytes = b"", body: str | None = None, query: bytes = b"") -> str:
        fields: Fields = [(b"X-USER-id", header)] if header else []
        return user_of(
            meta_user=meta,
            fields=fields,
            body_user=body,
            query=query,
            credential_id="0123456789abcdef",
            address="1.2.3.4",
        )

    def test_order(self) -> None:
        """Path, X-User-ID, body, query, credential, address: the first that is there counts."""
        query = b"a=1&llm_user_id=q"
        self.assertEqual(self._user("m", b"h", "b", query), "m")
        self.assertEqual(self._user("", b"h", "b", query), "h")
        self.assertEqual(self._user(None, b"", "b", query), "b")
        self.assertEqual(self._user(None, b"  ", "", query), "q")
        self.assertEqual(self._user(), "token:0123456789ab")
        nobody = user_of(meta_user=None, fields=[], body_user=None, query=b"", credential_id=None, address="1.2.3.4")
        self.assertEqual(nobody, "ip:1.2.3.4")

    def test_query_is_decoded(self) -> None:
        """A user id with special characters is the same in the query as in a header."""
        self.assertEqual(self._user(query=b"llm_user_id=j%C3%B6+a%40b"), "jö a@b")

    @given(st.text(alphabet=st.characters(), min_size=1, max_size=400))
    def test_safe_to_log(self, text: str) -> None:
        """No user id breaks a log line, colours a terminal, turns its writing around, or fails to encode."""
        for user in (self._user(meta=text), self._user(body=text)):
            user.encode("utf-8")
            self.assertLessEqual(len(user), 256)
            self.assertEqual(len(user.splitlines()), 1)
            self.assertNotRegex(user, "[\x00-\x1f\x7f-\x9f\u202e]")

    def test_not_utf8(self) -> None:
        """A user id in another encoding is taken as well as it can be read."""
        self.assertEqual(self._user(header=b"j\xf6"), "j\ufffd")
        self.assertEqual(self._user(header=b"a\tb"), "a?b")
