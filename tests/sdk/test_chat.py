"""Chat completions, with every SDK that speaks them and at every base URL that serves them.

The same cases for OpenAI, for Groq with its own SDK and with OpenAI's, and for Gemini's compatible endpoint.
"""

import asyncio
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from tests.sdk.conftest import Simulator
from tests.sdk.installed import CUT, groq, openai

HELLO = [{"role": "user", "content": "Say hello."}]
WEATHER = [{"role": "user", "content": "How is the weather in Paris?"}]
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "The weather of a city",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        },
    }
]


@dataclass(frozen=True, slots=True)
class Speaker:
    """An SDK at one base URL. `upstream` is the path that the provider is then asked for."""

    sdk: str
    path: str
    model: str
    upstream: str
    make: Callable[..., Any]
    make_async: Callable[..., Any]
    errors: Any

    def client(self, **options: Any) -> Any:
        return self.make(self.path, **options)

    def create(self, **arguments: Any) -> Any:
        """One call with the plain client."""
        return self.client().chat.completions.create(**{"model": self.model, "messages": HELLO} | arguments)

    def async_client(self) -> Any:
        """An `async with` gives a client, and closes it while its event loop still runs."""
        return self.make_async(self.path)

    async def create_async(self, client: Any, **arguments: Any) -> Any:
        call = {"model": self.model, "messages": HELLO} | arguments
        return await client.chat.completions.create(**call)


SPEAKERS = {
    "openai": ("openai", "/openai/v1", "gpt-4o", "/v1/chat/completions"),
    "openai-at-groq": ("openai", "/groq/v1", "llama-3.3-70b-versatile", "/openai/v1/chat/completions"),
    "openai-at-gemini": (
        "openai",
        "/gemini/v1beta/openai/",
        "gemini-2.5-flash-lite",
        "/v1beta/openai/chat/completions",
    ),
    "groq": ("groq", "/groq", "llama-3.3-70b-versatile", "/openai/v1/chat/completions"),
}


@pytest.fixture(params=SPEAKERS)
def speaker(
    request: pytest.FixtureRequest,
    openai_client: Any,
    async_openai_client: Any,
    groq_client: Any,
    async_groq_client: Any,
) -> Speaker:
    sdk, path, model, upstream = SPEAKERS[request.param]
    if sdk == "groq":
        return Speaker(sdk, path, model, upstream, groq_client, async_groq_client, groq)
    return Speaker(sdk, path, model, upstream, openai_client, async_openai_client, openai)


def check_answer(speaker: Speaker, answer: Any) -> None:
    assert len(answer.choices[0].message.content) > 20
    assert answer.choices[0].finish_reason == "stop"
    assert answer.model.startswith(speaker.model)
    usage = answer.usage
    assert usage.prompt_tokens > 0
    assert usage.completion_tokens > 0
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens


def text_of(chunks: list[Any]) -> str:
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)


def usages_of(speaker: Speaker, chunks: list[Any]) -> list[Any]:
    """Every usage of a stream: Groq's own SDK has it in the last choice, OpenAI's in a chunk of its own."""
    if speaker.sdk == "groq":
        return [chunk.x_groq.usage for chunk in chunks if chunk.x_groq and chunk.x_groq.usage]
    return [chunk.usage for chunk in chunks if chunk.usage]


def streaming(speaker: Speaker) -> dict[str, Any]:
    counted: dict[str, Any] = {} if speaker.sdk == "groq" else {"stream_options": {"include_usage": True}}
    return {"stream": True} | counted


def check_stream(speaker: Speaker, chunks: list[Any], whole: Any) -> None:
    """A stream says what the plain call says, piece by piece, and counts the same."""
    assert text_of(chunks) == whole.choices[0].message.content
    assert [c.choices[0].finish_reason for c in chunks if c.choices and c.choices[0].finish_reason] == ["stop"]
    (usage,) = usages_of(speaker, chunks)
    assert usage.prompt_tokens == whole.usage.prompt_tokens
    assert usage.completion_tokens == whole.usage.completion_tokens


def test_plain_call(speaker: Speaker, simulator: Simulator) -> None:
    """A plain call gives the answer and its usage, and the provider is asked for its own path."""
    check_answer(speaker, speaker.create())
    assert simulator.seen()[-1].target == speaker.upstream


def test_stream(speaker: Speaker) -> None:
    """A stream gives every piece and the final usage."""
    check_stream(speaker, list(speaker.create(**streaming(speaker))), speaker.create())


@pytest.mark.anyio
async def test_async_client(speaker: Speaker) -> None:
    """The asynchronous client gets the same, whole and streamed."""
    async with speaker.async_client() as client:
        whole = await speaker.create_async(client)
        check_answer(speaker, whole)
        stream = await speaker.create_async(client, **streaming(speaker))
        check_stream(speaker, [chunk async for chunk in stream], whole)


def test_base_url_that_names_a_user(speaker: Speaker, simulator: Simulator) -> None:
    """With `/meta/{user}` in front, everything is the same, and the provider does not see it."""
    client = speaker.make("/meta/alice@example.com" + speaker.path)
    call = {"model": speaker.model, "messages": HELLO}
    check_answer(speaker, client.chat.completions.create(**call))
    assert simulator.seen()[-1].target == speaker.upstream
    stream = client.chat.completions.create(**call, **streaming(speaker))
    check_stream(speaker, list(stream), speaker.create())


def test_events_come_one_by_one(speaker: Speaker) -> None:
    """The pieces arrive at the provider's pace, not all together at the end."""
    arrivals_s = [
        time.monotonic()
        for chunk in speaker.create(model=f"{speaker.model}+events=6+interval=0.1", stream=True)
        if chunk.choices and chunk.choices[0].delta.content
    ]
    assert len(arrivals_s) == 6
    assert arrivals_s[-1] - arrivals_s[0] > 0.3


def test_tool_call(speaker: Speaker) -> None:
    """A tool call comes whole: its name, its id and arguments that are JSON."""
    choice = speaker.create(messages=WEATHER, tools=TOOLS).choices[0]
    assert choice.finish_reason == "tool_calls"
    (call,) = choice.message.tool_calls
    assert call.id
    assert call.function.name == "get_weather"
    assert set(json.loads(call.function.arguments)) == {"city"}


def test_streamed_tool_call(speaker: Speaker) -> None:
    """The pieces of a streamed tool call make the same arguments."""
    whole = speaker.create(messages=WEATHER, tools=TOOLS)
    chunks = list(speaker.create(messages=WEATHER, tools=TOOLS, stream=True))
    calls = [call for chunk in chunks if chunk.choices for call in chunk.choices[0].delta.tool_calls or []]
    assert len(calls) > 2
    assert calls[0].function.name == "get_weather"
    arguments = "".join(call.function.arguments or "" for call in calls)
    assert arguments == whole.choices[0].message.tool_calls[0].function.arguments


@pytest.mark.parametrize("stream", [False, True])
def test_gzip(speaker: Speaker, stream: bool) -> None:
    """An answer that the provider compressed reaches the SDK compressed, and is read."""
    answer = speaker.client().chat.completions.with_raw_response.create(
        model=speaker.model + "+encoding=gzip", messages=HELLO, stream=stream
    )
    assert answer.headers["content-encoding"] == "gzip"
    text = text_of(list(answer.parse())) if stream else answer.parse().choices[0].message.content
    assert text == speaker.create().choices[0].message.content


@pytest.mark.parametrize(
    ("status", "name"),
    [
        (400, "BadRequestError"),
        (429, "RateLimitError"),
        (500, "InternalServerError"),
        (503, "InternalServerError"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_errors_of_the_provider(speaker: Speaker, simulator: Simulator, status: int, name: str, stream: bool) -> None:
    """The provider's error raises its class, with the provider's body, asked for once."""
    before = simulator.requests
    with pytest.raises(getattr(speaker.errors, name)) as raised:
        speaker.create(model=f"{speaker.model}+status={status}", stream=stream)
    check_from_provider(speaker, raised.value, status)
    assert simulator.requests == before + 1


def check_from_provider(speaker: Speaker, error: Any, status: int) -> None:
    assert error.status_code == status
    assert error.message
    assert error.body
    headers = error.response.headers
    assert "x-llm-proxy-error-source" not in headers
    assert headers["x-llm-proxy-request-id"]
    if "gemini" not in speaker.path:  # which sends no request id
        assert headers["x-request-id"].startswith("req_")
        assert "," not in headers["x-request-id"]
        assert headers["x-request-id"] != headers["x-llm-proxy-request-id"]
        if speaker.sdk == "openai":
            assert error.request_id == headers["x-request-id"]


def test_unknown_model(speaker: Speaker) -> None:
    """A model that the provider does not have is its 404, in its words."""
    with pytest.raises(speaker.errors.NotFoundError) as raised:
        speaker.create(model="missing-model")
    check_from_provider(speaker, raised.value, 404)
    assert "missing-model" in raised.value.response.text


def test_key_not_accepted(speaker: Speaker) -> None:
    """A key that the provider does not accept: OpenAI and Groq say 401, Gemini 400."""
    gemini = "gemini" in speaker.path
    expected = speaker.errors.BadRequestError if gemini else speaker.errors.AuthenticationError
    with pytest.raises(expected) as raised:
        speaker.client(api_key="sk-invalid").chat.completions.create(model=speaker.model, messages=HELLO)
    check_from_provider(speaker, raised.value, 400 if gemini else 401)
    assert "key" in raised.value.response.text


def test_retry_after_passes(speaker: Speaker) -> None:
    """The wait that the provider asks for reaches the SDK as it was sent: a field, or with Gemini in the body."""
    with pytest.raises(speaker.errors.RateLimitError) as raised:
        speaker.create(model=speaker.model + "+status=429+retry_after=7")
    answer = raised.value.response
    if "gemini" in speaker.path:
        assert '"retryDelay": "7s"' in answer.text
    else:
        assert answer.headers["retry-after"] == "7"


def test_retry(speaker: Speaker, simulator: Simulator) -> None:
    """With its retries on, the SDK asks again after an error of the provider, and the proxy does not."""
    client = speaker.client(max_retries=1)
    with pytest.raises(speaker.errors.InternalServerError):
        client.chat.completions.create(model=speaker.model + "+status=500", messages=HELLO)
    counts = [seen.values("x-stainless-retry-count") for seen in simulator.seen(2)]
    assert counts == [["0"], ["1"]]


def test_close_in_mid_stream(speaker: Speaker, simulator: Simulator) -> None:
    """Closing a stream in the middle ends the provider's work at once."""
    before = simulator.aborts
    stream = speaker.create(model=speaker.model + "+events=5000", stream=True)
    for _ in range(3):
        next(stream)
    assert simulator.aborts == before
    stream.close()
    assert simulator.sees_abort(before)
    assert simulator.seen()[-1].aborted


@pytest.mark.anyio
@pytest.mark.parametrize("where", ["before the head", "in the stream"])
async def test_cancelled_task(speaker: Speaker, simulator: Simulator, where: str) -> None:
    """Cancelling the task ends the provider's work: while it still thinks, and while it speaks."""
    before = simulator.aborts
    reading = asyncio.Event()
    wish = "delay=30" if where == "before the head" else "events=5000"

    async def read() -> None:
        async for _ in await speaker.create_async(client, model=f"{speaker.model}+{wish}", stream=True):
            reading.set()

    async with speaker.async_client() as client:
        task = asyncio.create_task(read())
        if where == "before the head":
            await asyncio.sleep(0.3)
        else:
            await reading.wait()
        assert simulator.aborts == before
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert simulator.sees_abort(before)


@pytest.mark.parametrize("fault", ["cut", "reset"])
def test_stream_that_the_provider_breaks_off(speaker: Speaker, fault: str) -> None:
    """A stream that the provider breaks off raises; it never just ends."""
    stream = speaker.create(model=f"{speaker.model}+events=50+{fault}=3000", stream=True)
    chunks = []
    with pytest.raises(CUT[speaker.sdk]):
        for chunk in stream:
            chunks.append(chunk)
    assert 1 < len(chunks) < 50


@pytest.mark.anyio
async def test_async_stream_that_the_provider_breaks_off(speaker: Speaker) -> None:
    """The same for the asynchronous client."""
    async with speaker.async_client() as client:
        stream = await speaker.create_async(client, model=speaker.model + "+events=50+cut=3000", stream=True)
        with pytest.raises(CUT[speaker.sdk]):
            async for _ in stream:
                pass


def test_answer_that_the_provider_breaks_off(speaker: Speaker) -> None:
    """A whole answer that breaks off in its body raises."""
    with pytest.raises(speaker.errors.APIConnectionError):
        speaker.create(model=speaker.model + "+bytes=20000+cut=5000")


def test_models(speaker: Speaker) -> None:
    """The list of models is the provider's."""
    assert speaker.model in [model.id for model in speaker.client().models.list().data]
