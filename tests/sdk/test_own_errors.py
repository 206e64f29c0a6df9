"""What the proxy itself says: each SDK raises the class of the status, with the proxy's sentence in it."""

from collections.abc import Callable
from typing import Any

import pytest

from tests.sdk.installed import anthropic, genai, groq, openai

HELLO: list[Any] = [{"role": "user", "content": "Say hello."}]
REFUSED = "could not be reached from the proxy"
UNKNOWN = "/openai"


def chat(client: Any, **arguments: Any) -> Any:
    return client.chat.completions.create(model="gpt-4o", messages=HELLO, **arguments)


def message(client: Any, **arguments: Any) -> Any:
    return client.messages.create(model="claude-sonnet-5-5", max_tokens=64, messages=HELLO, **arguments)


@pytest.fixture(params=["openai", "groq", "anthropic"])
def sdk(request: pytest.FixtureRequest) -> tuple[Any, Any, Callable[..., Any]]:
    """The module, what makes a client for a path, and what calls with it."""
    make = request.getfixturevalue(f"{request.param}_client")
    module = {"openai": openai, "groq": groq, "anthropic": anthropic}[request.param]
    return module, make, message if request.param == "anthropic" else chat


def check(error: Any, status: int, error_class: str, words: str) -> None:
    assert error.status_code == status
    assert words in str(error)
    assert error.response.headers["x-llm-proxy-error-class"] == error_class
    assert error.response.headers["x-llm-proxy-error-source"] in ("proxy", "upstream")
    assert isinstance(error.body, dict)


@pytest.mark.parametrize("stream", [False, True])
def test_unknown_route(sdk: tuple[Any, Any, Callable[..., Any]], stream: bool) -> None:
    """A base URL that the proxy does not know is NotFoundError, and its message lists what there is."""
    module, make, call = sdk
    with pytest.raises(module.NotFoundError) as raised:
        call(make("/nowhere"), stream=stream)
    check(raised.value, 404, "unknown_route", UNKNOWN)


@pytest.mark.parametrize("stream", [False, True])
def test_provider_that_refuses_connections(sdk: tuple[Any, Any, Callable[..., Any]], stream: bool) -> None:
    """A provider that cannot be reached is the class for a 502, which says so in words."""
    module, make, call = sdk
    path = "/refused-anthropic" if module is anthropic else "/refused-openai"
    with pytest.raises(module.InternalServerError) as raised:
        call(make(path), stream=stream)
    check(raised.value, 502, "upstream_connect_failed", REFUSED)


@pytest.mark.anyio
async def test_async_client(async_openai_client: Any, async_anthropic_client: Any) -> None:
    """The asynchronous clients raise the same."""
    async with async_openai_client("/refused-openai") as client:
        with pytest.raises(openai.InternalServerError, match=REFUSED):
            await chat(client)
    async with async_anthropic_client("/refused-anthropic") as client:
        with pytest.raises(anthropic.InternalServerError, match=REFUSED):
            await message(client)


def test_fields_of_the_errors(sdk: tuple[Any, Any, Callable[..., Any]]) -> None:
    """The body has the members that the SDK reads, with the provider's words for them."""
    module, make, call = sdk
    with pytest.raises(module.NotFoundError) as raised:
        call(make("/nowhere"))
    body = raised.value.body
    error = body.get("error", body)
    assert error["message"]
    assert error["type"] in ("invalid_request_error", "not_found_error")


@pytest.mark.parametrize("stream", [False, True])
def test_gemini_unknown_route(gemini_client: Any, stream: bool) -> None:
    """google-genai raises ClientError with the sentence as its message."""
    with pytest.raises(genai.errors.ClientError) as raised:
        generate(gemini_client("/nowhere"), stream)
    assert raised.value.code == 404
    assert UNKNOWN in str(raised.value)


@pytest.mark.parametrize("stream", [False, True])
def test_gemini_provider_that_refuses_connections(gemini_client: Any, stream: bool) -> None:
    """google-genai raises ServerError with status, code and sentence."""
    with pytest.raises(genai.errors.ServerError) as raised:
        generate(gemini_client("/refused-gemini"), stream)
    assert raised.value.code == 502
    assert raised.value.status == "UNAVAILABLE"
    assert REFUSED in raised.value.message


def generate(client: Any, stream: bool) -> None:
    call = {"model": "gemini-2.5-flash", "contents": "Say hello."}
    if stream:
        list(client.models.generate_content_stream(**call))
    else:
        client.models.generate_content(**call)
