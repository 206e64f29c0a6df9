"""Resumable uploads: the address to send the bytes to comes back through the proxy."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_network

from twisted.trial.unittest import SynchronousTestCase

from llmproxy.config.model import Fidelity, Server
from llmproxy.providers import CATALOG
from tests.web.proxy_in_memory import ProxyInMemory, field, ok, post

_AT_GOOGLE = b"http://gemini.test/upload/v1/files?upload_id=a%2Fb&upload_protocol=resumable"
_BEHIND = b"/gemini/upload/v1/files?upload_id=a%2Fb&upload_protocol=resumable"


def _start(
    proxy: ProxyInMemory, *fields: bytes, path: str = "/gemini/upload/v1/files", url: bytes = _AT_GOOGLE
) -> bytes:
    answer = ok(b"", b"X-Goog-Upload-URL: " + url, b"x-goog-upload-control-url: " + url)
    return proxy.exchange(post(path, b"{}", *fields), answer, "gemini")[1]


class UploadUrls(SynchronousTestCase):
    """`X-Goog-Upload-URL` and `X-Goog-Upload-Control-URL`."""

    def test_by_host(self) -> None:
        """Both lead to the address that the caller used, query and escapes untouched."""
        answer = _start(ProxyInMemory())
        self.assertEqual(field(answer, b"x-goog-upload-url"), b"http://proxy.test" + _BEHIND)
        self.assertEqual(field(answer, b"x-goog-upload-control-url"), b"http://proxy.test" + _BEHIND)

    def test_by_public_url(self) -> None:
        """Behind a balancer they lead to the public address."""
        answer = _start(ProxyInMemory(server=Server(public_url="https://llm.example.com")))
        self.assertEqual(field(answer, b"x-goog-upload-url"), b"https://llm.example.com" + _BEHIND)

    def test_by_a_trusted_proxy(self) -> None:
        """A trusted balancer that took TLS off says so; anybody else who says so is not believed."""
        ask = b"X-Forwarded-Proto: https"
        trusted = Server(trusted_proxies=(ip_network("192.0.2.0/24"),))
        self.assertTrue(
            (field(_start(ProxyInMemory(server=trusted), ask), b"x-goog-upload-url") or b"")[:6] == b"https:"
        )
        self.assertTrue((field(_start(ProxyInMemory(), ask), b"x-goog-upload-url") or b"")[:5] == b"http:")

    def test_with_a_user_in_the_path(self) -> None:
        """The user stays in the path, so that the upload is counted for the same one."""
        answer = _start(ProxyInMemory(), path="/meta/a%20b/gemini/upload/v1/files")
        self.assertEqual(field(answer, b"x-goog-upload-url"), b"http://proxy.test/meta/a%20b" + _BEHIND)

    def test_the_upload_works(self) -> None:
        """The URL that is given leads, through the proxy, to the one that Google gave."""
        proxy = ProxyInMemory()
        url = field(_start(proxy), b"x-goog-upload-url") or b""
        sent, _ = proxy.exchange(post(url.removeprefix(b"http://proxy.test").decode(), b"bytes"), ok(), "gemini")
        self.assertTrue(sent.startswith(b"POST " + _AT_GOOGLE.removeprefix(b"http://gemini.test") + b" HTTP/1.1\r\n"))

    def test_elsewhere(self) -> None:
        """A URL that points anywhere but to the provider is left alone, near misses too."""
        for url in (
            b"http://storage.test/upload",
            b"http://gemini.test.evil.test/upload",
            b"https://gemini.test/upload",
            b"http://gemini.test:81/upload",
            b"http://gemini.test",
            b"/upload",
        ):
            self.assertEqual(field(_start(ProxyInMemory(), url=url), b"x-goog-upload-url"), url)

    def test_base_url_with_a_path(self) -> None:
        """A path in the provider's base URL is not doubled by the way back."""
        gemini = replace(CATALOG["gemini"], base_url="http://gemini.test/api")
        proxy = ProxyInMemory(providers={"gemini": gemini})
        answer = _start(proxy, url=b"http://gemini.test/api/upload/x")
        self.assertEqual(field(answer, b"x-goog-upload-url"), b"http://proxy.test/gemini/upload/x")
        self.assertEqual(
            field(_start(proxy, url=b"http://gemini.test/upload/x"), b"x-goog-upload-url"),
            b"http://gemini.test/upload/x",
        )

    def test_switched_off(self) -> None:
        """`fidelity.rewrite_upload_urls: false` leaves them alone."""
        proxy = ProxyInMemory(fidelity=Fidelity(rewrite_upload_urls=False))
        self.assertEqual(field(_start(proxy), b"x-goog-upload-url"), _AT_GOOGLE)
