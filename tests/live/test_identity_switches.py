"""The differences that an operator can switch: each of them on and off, and what comes with each."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.live.conversation import OK, STREAM_HEAD, Stage, answer, get, post, request
from tests.live.proxy import all_providers, running_proxy
from tests.live.upstream import Upstream


@pytest.fixture(scope="module")
def _flipped_stage() -> Iterator[Stage]:
    upstream = Upstream()
    config = {
        "providers": all_providers(upstream.url),
        "identity": {"strip": True},
        "fidelity": {
            "preserve_host": True,
            "via": True,
            "x_forwarded_for": True,
            "strip_control_fields": False,
            "request_id": False,
            "accel_buffering": False,
            "rewrite_upload_urls": False,
            "server_timing": False,
        },
        "cors": {"enabled": False},
    }
    with running_proxy(config) as proxy:
        yield Stage(proxy, upstream)
    upstream.close()


@pytest.fixture
def flipped(_flipped_stage: Stage) -> Iterator[Stage]:
    """A proxy with every switch of `fidelity`, `identity.strip` and `cors.enabled` at the other value."""
    yield _flipped_stage
    _flipped_stage.clear()


@pytest.fixture(scope="module")
def _public_stage() -> Iterator[Stage]:
    upstream = Upstream()
    config = {
        "server": {"public_url": "https://llm.example.test", "trusted_proxies": ["127.0.0.1"]},
        "providers": {"gemini": {"base_url": upstream.url + "/at/google"}},
        "cors": {"allow_origins": ["https://app.test"], "allow_headers": ["Authorization"], "max_age_s": 5},
    }
    with running_proxy(config) as proxy:
        yield Stage(proxy, upstream)
    upstream.close()


@pytest.fixture
def public(_public_stage: Stage) -> Iterator[Stage]:
    """A proxy that knows its public URL, lets one origin in, and has a provider whose base URL has a path."""
    yield _public_stage
    _public_stage.clear()


# -- everything switched over ----------------------------------------------------------------------------------------


def test_request_with_all_switched(flipped: Stage) -> None:
    """The caller's Host stays, its user is taken out, control fields pass, and the way is told."""
    arrived = flipped.arrives(
        get(
            b"/openai/v1/x?a=%2F&llm_user_id=bob&b&llm_user_idx=1",
            b"X-User-ID: bob",
            b"x-user-id: bob",
            b"X-LLM-Proxy-Anything: 1",
            b"X-Forwarded-For: 1.2.3.4",
            b"Via: 1.0 other",
        )
    )
    assert arrived.start == b"GET /v1/x?a=%2F&b&llm_user_idx=1 HTTP/1.1"
    assert arrived.lines == [
        b"Host: proxy.test",
        b"X-LLM-Proxy-Anything: 1",
        b"X-Forwarded-For: 1.2.3.4",
        b"Via: 1.0 other",
        b"X-Forwarded-For: 127.0.0.1",
        b"Via: 1.1 llmproxy",
    ]


def test_user_item_alone(flipped: Stage) -> None:
    """Without any other item in the query, no question mark is left behind."""
    assert flipped.arrives(get(b"/openai/v1/x?llm_user_id=bob")).start == b"GET /v1/x HTTP/1.1"


def test_answer_with_all_switched(flipped: Stage) -> None:
    """Nothing is added but the Via that was asked for, and the provider's own words pass."""
    lines = [
        b"Content-Type: text/event-stream",
        b"Access-Control-Allow-Origin: https://other.test",
        b"access-control-expose-headers: x",
        b"X-LLM-Proxy-Request-ID: its own",
        b"X-Goog-Upload-URL: " + flipped.upstream.url.encode() + b"/upload/x",
    ]
    returned = flipped.returns(answer(*lines), ask=get(b"/gemini/v1/x", b"Origin: https://app.test"))
    assert returned.lines == [*lines, b"Content-Length: 2", b"Via: 1.1 llmproxy"]


def test_preflight_with_cors_off(flipped: Stage) -> None:
    """Without CORS of our own, a browser's question is the provider's to answer."""
    ask = request(b"OPTIONS", b"/openai/v1/x", b"Origin: https://app.test", b"Access-Control-Request-Method: POST")
    assert flipped.arrives(ask).start == b"OPTIONS /v1/x HTTP/1.1"


# -- CORS --------------------------------------------------------------------------------------------------------------


def test_cors_fields_are_replaced(stage: Stage) -> None:
    """The provider's CORS fields speak of another origin: ours take their place, once."""
    reply = answer(
        b"Access-Control-Allow-Origin: https://other.test",
        b"access-control-allow-CREDENTIALS: true",
        b"Access-Control-Expose-Headers: x",
        b"Vary: Origin",
    )
    returned = stage.returns(reply, ask=get(b"/openai/v1/x", b"Origin: https://app.test"))
    assert returned.value("access-control-allow-origin") == b"*"
    assert returned.values("access-control-allow-credentials") == []
    exposed = (returned.value("access-control-expose-headers") or b"").lower().split(b", ")
    assert {b"x-request-id", b"request-id", b"retry-after", b"x-llm-proxy-request-id"} <= set(exposed)
    assert returned.values("vary") == [b"Origin"]


def test_preflight(stage: Stage) -> None:
    """A browser's question is answered here, and allows what it asks for; the provider does not hear of it."""
    asked = b"authorization,content-type,x-stainless-os"
    caller = stage.caller()
    caller.send(
        request(
            b"OPTIONS",
            b"/openai/v1/chat/completions",
            b"Origin: https://app.test",
            b"Access-Control-Request-Method: POST",
            b"Access-Control-Request-Headers: " + asked,
        )
    )
    returned = caller.read_message()
    assert (returned.status, returned.value("access-control-allow-origin")) == (204, b"*")
    assert returned.value("access-control-allow-headers") == asked
    assert b"POST" in (returned.value("access-control-allow-methods") or b"").split(b", ")
    assert returned.value("access-control-max-age") == b"600"
    assert stage.upstream.is_untouched(0.02)


def test_other_options_are_forwarded(stage: Stage) -> None:
    """An OPTIONS that is no browser's question is a request like any other."""
    ask = request(b"OPTIONS", b"/openai/v1/x", b"Origin: https://app.test")
    returned = stage.returns(answer(b"Allow: GET"), ask=ask)
    assert returned.value("allow") == b"GET"


def test_cors_on_errors(stage: Stage) -> None:
    """A browser can read our own errors too."""
    caller = stage.caller()
    caller.send(get(b"/nowhere", b"Origin: https://app.test"))
    returned = caller.read_message()
    assert (returned.status, returned.value("access-control-allow-origin")) == (404, b"*")
    assert returned.value("access-control-expose-headers") is not None


def test_cors_for_one_origin(public: Stage) -> None:
    """Only the origin that is let in is named; another one, or none, is not reflected."""
    for origin, allowed in ((b"https://app.test", b"https://app.test"), (b"https://evil.test", None), (None, None)):
        lines = [b"Origin: " + origin] if origin is not None else []
        returned = public.returns(OK, ask=get(b"/gemini/v1/x", *lines))
        assert returned.value("access-control-allow-origin") == allowed
        assert b"Origin" in returned.values("vary")


# -- the words for nginx, and resumable uploads ------------------------------------------------------------------------


def test_accel_buffering(stage: Stage) -> None:
    """Event streams, and nothing else, ask an nginx in front not to gather them."""
    for content_type, value in (
        (b"text/event-stream", b"no"),
        (b"Text/Event-Stream;charset=utf-8", b"no"),
        (b"text/plain", None),
    ):
        returned = stage.returns(answer(b"Content-Type: " + content_type))
        assert returned.value("x-accel-buffering") == value


@pytest.mark.parametrize("prefix", [b"/gemini", b"/meta/bob/gemini", b"/meta/a%2Fb/gemini"])
def test_upload(stage: Stage, prefix: bytes) -> None:
    """Google's upload URL leads back through the proxy, under the Host and prefix that the caller used, and works."""
    base = stage.upstream.url.encode()
    start = request(
        b"POST", prefix + b"/upload/v1beta/files", b"X-Goog-Upload-Command: start", body=b"{}", host=stage.proxy.host
    )
    returned = stage.returns(
        answer(
            b"X-Goog-Upload-URL: " + base + b"/upload/v1beta/files?upload_id=a%2Fb&x=+",
            b"x-goog-upload-control-url: " + base + b"/upload/control?upload_id=1",
            b"X-Goog-Upload-Status: active",
            b"Location: " + base + b"/stays",
            b"Link: <" + base + b"/stays>",
        ),
        ask=start,
    )
    here = b"http://" + stage.proxy.host
    url = returned.value("x-goog-upload-url") or b""
    assert url == here + prefix + b"/upload/v1beta/files?upload_id=a%2Fb&x=+"
    assert returned.value("x-goog-upload-control-url") == here + prefix + b"/upload/control?upload_id=1"
    assert (returned.value("location"), returned.value("link")) == (base + b"/stays", b"<" + base + b"/stays>")
    arrived = stage.arrives(
        request(b"POST", url.removeprefix(here), b"X-Goog-Upload-Command: upload, finalize", body=b"\x00bytes")
    )
    assert arrived.start == b"POST /upload/v1beta/files?upload_id=a%2Fb&x=+ HTTP/1.1"
    assert arrived.body == b"\x00bytes"


def test_upload_urls_of_others(stage: Stage) -> None:
    """An upload URL that is not the provider's own is left alone: the proxy would not know where to send it."""
    for url in (b"https://storage.test/upload", stage.upstream.url.encode() + b"0/upload", b"/upload", b""):
        returned = stage.returns(answer(b"X-Goog-Upload-URL: " + url), ask=post(b"{}", b"/gemini/upload/v1/files"))
        assert returned.value("x-goog-upload-url") == url


def test_upload_with_a_public_url(public: Stage) -> None:
    """Where the proxy is told its public URL, upload URLs lead there, and the base URL's path stays inside."""
    reply = answer(b"X-Goog-Upload-URL: " + public.upstream.url.encode() + b"/at/google/upload/v1/files?upload_id=1")
    for prefix in (b"/gemini", b"/meta/bob/gemini"):
        returned = public.returns(reply, ask=post(b"{}", prefix + b"/upload/v1/files"))
        url = b"https://llm.example.test" + prefix + b"/upload/v1/files?upload_id=1"
        assert returned.value("x-goog-upload-url") == url
    arrived = public.arrives(post(b"bytes", b"/gemini/upload/v1/files?upload_id=1"))
    assert arrived.start == b"POST /at/google/upload/v1/files?upload_id=1 HTTP/1.1"


def test_stream_of_events_keeps_its_own_word(stage: Stage) -> None:
    """A provider that has X-Accel-Buffering itself is not contradicted."""
    caller, upstream = stage.sends(get())
    upstream.read_message()
    upstream.send(STREAM_HEAD.replace(b"\r\n\r\n", b"\r\nx-accel-buffering: yes\r\n\r\n"), b"0\r\n\r\n")
    assert caller.read_message().values("x-accel-buffering") == [b"yes"]
