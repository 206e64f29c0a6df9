"""Asking a stream for its usage changes nothing for who did not ask: the same bytes with it and without it, from the
same provider."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
from collections.abc import Iterator

import pytest

from tests.live.proxy import Proxy, running_proxy
from tests.live.test_books import simulator
from tests.live.upstream import HOST

LIMIT_S = 20.0
_NEW_EACH_TIME = re.compile(rb'"(id|created|system_fingerprint)":("[^"]*"|\d+)')

CHAT = "/v1/chat/completions"
MESSAGES = '"messages": [{"role": "user", "content": "Say hello, my \\"usage\\":null friend."}]'
BODIES = {
    "plain": f'{{"model": "gpt-4o", "stream": true, {MESSAGES}}}',
    "compact": '{"model":"gpt-4o","messages":[{"role":"user","content":"hi"}],"stream":true}',
    "stream first": f'{{"stream":true,"model":"gpt-4o",{MESSAGES}}}',
    "spread out": f'\n {{\t"model" : "gpt-4o" ,\r\n "stream"\n:\ttrue , {MESSAGES} \n }} \r\n',
    "escapes": f'{{"mod\\u0065l": "gpt-4o", "\\u0073tream": true, "user": "\\ud83d\\ude00 \\u2028", {MESSAGES}}}',
    "options": f'{{"model":"gpt-4o","stream":true,"stream_options":{{"include_obfuscation":false}},{MESSAGES}}}',
    "options without": f'{{"model":"gpt-4o","stream":true,"stream_options":{{}},{MESSAGES}}}',
    "options null": f'{{"model":"gpt-4o","stream":true,"stream_options":null,{MESSAGES}}}',
    "said no": f'{{"model":"gpt-4o","stream":true,"stream_options":{{"include_usage":false}},{MESSAGES}}}',
    "large": f'{{"model":"gpt-4o","stream":true,"user":"{"x" * 300_000}",{MESSAGES}}}',
    "a number": f'{{"model":"gpt-4o","stream":true,"seed":12345678901234567890,"temperature":0.10,{MESSAGES}}}',
    "twice": f'{{"model":"gpt-4o","stream":false,"stream":true,{MESSAGES}}}',
    "many choices": f'{{"model":"gpt-4o","stream":true,"n":3,{MESSAGES}}}',
    "tools": f'{{"model":"gpt-4o","stream":true,"tool_choice":"required","tools":[{{"type":"function","function":'
    f'{{"name":"f","parameters":{{"type":"object","properties":{{"usage":{{"type":"null"}}}}}}}}}}],{MESSAGES}}}',
    "no stream": f'{{"model":"gpt-4o","stream":false,{MESSAGES}}}',
    "an error": f'{{"model":"missing-model","stream":true,{MESSAGES}}}',
    "no JSON": '{"model":"gpt-4o","stream":true,',
}
WISHES = {
    "": "",
    "cut": "cut=900",
    "reset": "reset=1200,interval=0.002",
    "error event": "error_event=3",
    "small writes": "chunk=7",
    "no end of line but CRLF": "crlf=1",
    "no usage": "usage=none",
    "one event": "bytes=200000,events=1",
}


@pytest.fixture(scope="module")
def proxy() -> Iterator[Proxy]:
    """A proxy whose provider is the simulator twice, once with asking and once without."""
    with simulator() as address:
        url = f"http://{address[0]}:{address[1]}"
        config = {
            "providers": {
                "openai": {"base_url": url},
                "unasked": {
                    "kind": "openai-compatible",
                    "base_url": url,
                    "accounting": {"inject_include_usage": False},
                    "prices": {"same_as": "openai"},
                },
            }
        }
        with running_proxy(config) as running:
            yield running


def answer(proxy: Proxy, provider: str, body: str, wish: str) -> tuple[int, list[tuple[str, str]], bytes, bool]:
    """Status, fields, body and whether the body came to its end; what is new at each call is taken out of the body."""
    connection = http.client.HTTPConnection(HOST, proxy.address[1], timeout=LIMIT_S)
    headers = {
        "Authorization": "Bearer k",
        "Content-Type": "application/json",
        "X-Simulate": f"delay=0,{wish}" if "interval" in wish else f"delay=0,interval=0,{wish}",
    }
    whole = True
    with contextlib.closing(connection):
        connection.request("POST", f"/{provider}{CHAT}", body.encode(), headers)
        response = connection.getresponse()
        try:
            data = response.read()
        except http.client.IncompleteRead as error:
            data, whole = error.partial, False
        except ConnectionError:
            data, whole = b"", False
        fields = sorted((name, "") for name, _ in response.getheaders() if name.lower() != "content-length")
        return response.status, fields, _NEW_EACH_TIME.sub(rb'"\1":0', data), whole


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_any_request(proxy: Proxy, body: str) -> None:
    """However the request is written, its answer is the same, byte for byte."""
    asked, unasked = (answer(proxy, provider, body, "") for provider in ("openai", "unasked"))
    assert asked == unasked
    assert asked[0] in (200, 400, 404)


@pytest.mark.parametrize("wish", WISHES.values(), ids=WISHES)
def test_any_answer(proxy: Proxy, wish: str) -> None:
    """Whatever becomes of the answer, its caller gets the same bytes of it; of one that is cut within its bytes, the
    same but for where the cut is, which the provider counts with what it added."""
    asked, unasked = (answer(proxy, provider, BODIES["plain"], wish) for provider in ("openai", "unasked"))
    if "cut=" in wish or "reset=" in wish:
        assert asked[:2] == unasked[:2]
        assert (asked[3], unasked[3]) == (False, False)
        assert unasked[2].startswith(asked[2])
    else:
        assert asked == unasked


def test_it_was_asked_for(proxy: Proxy) -> None:
    """These streams do tell the proxy their usage, and only with asking."""
    answer(proxy, "openai", BODIES["plain"], "events=5")
    asked = proxy.access_event(provider="openai", usage_source="exact", output_tokens=5)
    assert asked["include_usage"] == "added"
    answer(proxy, "unasked", BODIES["plain"], "events=6")
    unasked = proxy.access_event(provider="unasked", usage_reason="no_usage")
    assert (unasked["include_usage"], unasked["usage_source"]) == (None, "estimated")
    assert json.loads(BODIES["plain"])["stream"] is True
