"""No request, and no answer, chooses where the proxy connects to: somewhere else listens, and nobody ever comes.

Whatever a caller writes, its request goes to the provider of its path, with that provider's name in Host, or nowhere.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Final

import pytest

from tests.live.conversation import OK, Stage, answer, get, post, request
from tests.live.proxy import all_providers, running_proxy
from tests.live.upstream import HOST, Upstream
from tests.live.wire import Wire

KEY: Final = b"Authorization: Bearer sk-live-not-a-key"


@pytest.fixture(scope="module")
def canary() -> Iterator[Upstream]:
    """Listens, and must never hear anything."""
    upstream = Upstream()
    yield upstream
    upstream.close()


@pytest.fixture(scope="module")
def _caged(canary: Upstream) -> Iterator[Stage]:
    upstream = Upstream()
    config = {
        "providers": {
            **all_providers(upstream.url),
            "below": {"kind": "openai-compatible", "base_url": upstream.url + "/base"},
        }
    }
    with running_proxy(config, HTTP_PROXY=canary.url, ALL_PROXY=canary.url) as proxy:
        yield Stage(proxy, upstream)
    upstream.close()


@pytest.fixture
def caged(_caged: Stage, canary: Upstream) -> Iterator[Stage]:
    """A proxy before one upstream; after the test the canary has heard nothing."""
    yield _caged
    assert canary.is_untouched(0.1)
    _caged.clear()


def at(canary: Upstream, form: bytes) -> bytes:
    """``form`` with the canary's address in it."""
    port = b"%d" % canary.port
    return form.replace(b"HOST:PORT", HOST.encode() + b":" + port).replace(b"PORT", port)


# -- the target --------------------------------------------------------------------------------------------------------

REFUSED: Final = {
    b"http://HOST:PORT/": 400,
    b"http://HOST:PORT/openai/v1/models": 400,
    b"https://HOST:PORT/openai/v1/models": 400,
    b"HTTP://HOST:PORT/openai/v1/models": 400,
    b"http:HOST:PORT/openai/v1/models": 400,
    b"http://proxy.test@HOST:PORT/openai/v1/models": 400,
    b"http://HOST:PORT#@proxy.test/openai/v1/models": 400,
    b"ftp://HOST:PORT/openai/v1/models": 400,
    b"file:///openai/v1/models": 400,
    b"HOST:PORT": 400,
    b"@HOST:PORT/openai/v1/models": 400,
    b"openai@HOST:PORT/v1/models": 400,
    b"\\\\HOST:PORT\\openai": 400,
    b"//HOST:PORT/": 404,
    b"//HOST:PORT/openai/v1/models": 404,
    b"///HOST:PORT/openai/v1/models": 404,
    b"/\\HOST:PORT/openai/v1/models": 404,
    b"/@HOST:PORT/openai/v1/models": 404,
    b"/http://HOST:PORT/openai/v1/models": 404,
    b"/%2F%2FHOST:PORT/openai/v1/models": 404,
    b"/openai@HOST:PORT/v1/models": 404,
    b"/openai%40HOST:PORT/v1/models": 404,
    b"/openai:PORT/v1/models": 404,
    b"/openai:x@HOST:PORT/v1/models": 404,
    b"/openai.HOST:PORT/v1/models": 404,
    b"/openai%2F%2FHOST:PORT/v1/models": 404,
    b"/openai%00@HOST:PORT/v1/models": 404,
    b"/openai\\@HOST:PORT/v1/models": 404,
    b"/openai?@HOST:PORT/v1/models": 404,
    b"/openai;@HOST:PORT/v1/models": 404,
    b"/below@HOST:PORT/v1/models": 404,
    b"/below:@HOST:PORT/v1/models": 404,
    b"/meta/@HOST:PORT/v1/models": 404,
}
"""Targets that name another place, and what each is answered with."""

FORWARDED: Final = {
    b"/openai//HOST:PORT/": b"//HOST:PORT/",
    b"/openai///HOST:PORT/v1": b"///HOST:PORT/v1",
    b"/openai/http://HOST:PORT/": b"/http://HOST:PORT/",
    b"/openai/@HOST:PORT/": b"/@HOST:PORT/",
    b"/openai/%40HOST:PORT/": b"/%40HOST:PORT/",
    b"/openai/%2F%2FHOST:PORT/": b"/%2F%2FHOST:PORT/",
    b"/openai/\\HOST:PORT/": b"/\\HOST:PORT/",
    b"/openai/\\\\HOST:PORT/": b"/\\\\HOST:PORT/",
    b"/openai/..//HOST:PORT/": b"/..//HOST:PORT/",
    b"/openai/../..//HOST:PORT/": b"/../..//HOST:PORT/",
    b"/openai/:PORT/": b"/:PORT/",
    b"/openai/v1/models?url=http://HOST:PORT/": b"/v1/models?url=http://HOST:PORT/",
    b"/openai/v1/models?base_url=http://HOST:PORT/&api_base=http://HOST:PORT": (
        b"/v1/models?base_url=http://HOST:PORT/&api_base=http://HOST:PORT"
    ),
    b"/openai/?@HOST:PORT/": b"/?@HOST:PORT/",
    b"/below//HOST:PORT/": b"/base//HOST:PORT/",
    b"/below/@HOST:PORT/": b"/base/@HOST:PORT/",
    b"/below/../@HOST:PORT/": b"/base/../@HOST:PORT/",
    b"/meta/http:%2F%2FHOST:PORT/openai/v1/models": b"/v1/models",
    b"/meta/@HOST:PORT/openai//HOST:PORT/": b"//HOST:PORT/",
}
"""Targets that name another place behind a provider's prefix, and how each reaches that provider."""


@pytest.mark.parametrize("form", REFUSED, ids=repr)
def test_refused(caged: Stage, canary: Upstream, form: bytes) -> None:
    """A target that names another host is refused or leads nowhere: neither it nor my provider hears of the request."""
    for data in (get(at(canary, form), KEY), post(b"{}", at(canary, form), KEY)):
        caller = caged.caller()
        caller.send(data)
        returned = caller.read_message()
        assert returned.status == REFUSED[form]
        assert returned.value("x-llm-proxy-error-source") == b"proxy"
    assert caged.upstream.is_untouched(0.02)


@pytest.mark.parametrize("form", FORWARDED, ids=repr)
def test_forwarded(caged: Stage, canary: Upstream, form: bytes) -> None:
    """Behind a provider's prefix an address is only a part of the path: the provider gets it, byte for byte."""
    arrived = caged.arrives(get(at(canary, form), KEY))
    assert arrived.start == b"GET " + at(canary, FORWARDED[form]) + b" HTTP/1.1"
    assert arrived.values("host") == [caged.upstream.host]


@pytest.mark.parametrize("target", [b"HOST:PORT", b"http://HOST:PORT/", b"/openai/v1/models"])
def test_connect(caged: Stage, canary: Upstream, target: bytes) -> None:
    """The proxy is no forward proxy: CONNECT is refused, and what follows it is no request."""
    caller = caged.caller()
    caller.send(request(b"CONNECT", at(canary, target)), get())
    returned = caller.read_message()
    assert 400 <= returned.status < 600
    assert returned.value("x-llm-proxy-error-source") == b"proxy"
    assert caller.is_closed_within(1.0)
    assert caged.upstream.is_untouched(0.02)


# -- fields ------------------------------------------------------------------------------------------------------------

FIELDS: Final = (
    b"X-Forwarded-Host: HOST:PORT",
    b"X-Forwarded-Server: HOST:PORT",
    b"X-Forwarded-For: HOST",
    b"X-Forwarded-Port: PORT",
    b"X-Forwarded-Proto: http",
    b"Forwarded: for=HOST;host=HOST:PORT;proto=http",
    b"X-Host: HOST:PORT",
    b"X-Original-Host: HOST:PORT",
    b"X-Original-URL: http://HOST:PORT/",
    b"X-Rewrite-URL: http://HOST:PORT/",
    b"X-Base-Url: http://HOST:PORT",
    b"Base-Url: http://HOST:PORT",
    b"X-Api-Base: http://HOST:PORT",
    b"Api-Base: http://HOST:PORT",
    b"X-Upstream: http://HOST:PORT",
    b"X-Target-URL: http://HOST:PORT/",
    b"X-Proxy-Url: http://HOST:PORT",
    b"Proxy: http://HOST:PORT",
    b"Destination: http://HOST:PORT/",
    b"X-LLM-Proxy-Base-URL: http://HOST:PORT",
    b"X-LLM-Proxy-Upstream: http://HOST:PORT",
    b"X-LLM-Proxy-Provider: http://HOST:PORT",
    b"Helicone-Target-URL: http://HOST:PORT",
    b"x-portkey-custom-host: http://HOST:PORT",
    b"X-Goog-Upload-URL: http://HOST:PORT/",
)


@pytest.mark.parametrize("field", FIELDS, ids=repr)
def test_fields(caged: Stage, canary: Upstream, field: bytes) -> None:
    """No field of a request leads it elsewhere, whatever other gateways make of it."""
    arrived = caged.arrives(get(b"/openai/v1/models", at(canary, field), KEY))
    assert arrived.values("host") == [caged.upstream.host]
    assert arrived.start == b"GET /v1/models HTTP/1.1"


def test_host(caged: Stage, canary: Upstream) -> None:
    """Nor does Host: whatever it says, the provider's own name is what the provider gets."""
    for host in (canary.host, b"evil.test", b"169.254.169.254", caged.upstream.host):
        arrived = caged.arrives(request(b"GET", b"/openai/v1/models", KEY, host=host))
        assert arrived.values("host") == [caged.upstream.host]


def test_bodies(caged: Stage, canary: Upstream) -> None:
    """Nor does JSON: `api_base`, `base_url` and their like are my provider's to read, and reach it unchanged."""
    place = canary.url
    body = json.dumps(
        {
            "model": f"openai/{place}/m",
            "messages": [{"role": "user", "content": place}],
            **dict.fromkeys(
                ("api_base", "base_url", "api_host", "endpoint", "url", "proxy", "custom_llm_provider"), place
            ),
            "metadata": {"api_base": place},
            "extra_body": {"base_url": place},
        }
    ).encode()
    for target in (b"/openai/v1/chat/completions", b"/anthropic/v1/messages", b"/below/v1/chat/completions"):
        arrived = caged.arrives(post(body, target, KEY, b"Content-Type: application/json"))
        assert arrived.body == body
        assert arrived.values("host") == [caged.upstream.host]


# -- answers -----------------------------------------------------------------------------------------------------------


def _asked(caged: Stage, data: bytes, reply: bytes) -> tuple[Wire, Wire]:
    caller, upstream = caged.sends(data)
    upstream.read_message()
    upstream.send(reply)
    return caller, upstream


@pytest.mark.parametrize("status", [b"300", b"301", b"302", b"303", b"305", b"307", b"308"])
def test_redirects(caged: Stage, canary: Upstream, status: bytes) -> None:
    """A redirect is handed to the caller as it is, with its Location; nobody's key follows it."""
    for place in (f"{canary.url}/v1/models", f"//{HOST}:{canary.port}/", f"http://user@{HOST}:{canary.port}/?a#b"):
        location = b"Location: " + place.encode()
        for data in (get(b"/openai/v1/models", KEY), post(b"{}", b"/openai/v1/chat/completions", KEY)):
            caller, upstream = _asked(caged, data, answer(location, status=status + b" Elsewhere", body=b"moved"))
            returned = caller.read_message()
            assert (returned.status, returned.body) == (int(status), b"moved")
            assert location in returned.lines
            assert upstream.is_quiet(0.01)


@pytest.mark.parametrize(
    "line",
    [
        b"Refresh: 0; url=http://HOST:PORT/",
        b'Alt-Svc: http/1.1="HOST:PORT"; ma=3600',
        b"Content-Location: http://HOST:PORT/",
        b"Link: <http://HOST:PORT/>; rel=preload",
        b"X-Goog-Upload-URL: http://HOST:PORT/upload",
        b"X-Accel-Redirect: /HOST:PORT/",
        b"X-Sendfile: /etc/passwd",
        b"Proxy-Authenticate: Basic",
    ],
    ids=repr,
)
def test_other_directions(caged: Stage, canary: Upstream, line: bytes) -> None:
    """Nor does the proxy act on anything else in an answer that names another place."""
    for prefix in (b"/openai", b"/gemini"):
        assert caged.returns(answer(at(canary, line)), ask=get(prefix + b"/v1/models")).body == b"ok"
        assert caged.exchange((get(prefix + b"/v1/models"),), (OK,))[0].values("host") == [caged.upstream.host]
