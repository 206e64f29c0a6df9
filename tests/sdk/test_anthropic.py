"""Anthropic's SDK at `P/anthropic`: messages whole and streamed, thinking, tools, counts, models, errors, cancel."""

import asyncio
import time
from typing import Any

import pytest

from tests.sdk.conftest import Simulator
from tests.sdk.installed import ANTHROPIC_KEY_FIELD, ANTHROPIC_UNAVAILABLE, CUT, anthropic

MODEL = "claude-sonnet-5-5"
CALL = {"model": MODEL, "max_tokens": 1024, "messages": [{"role": "user", "content": "Say hello."}]}
WEATHER = CALL | {
    "messages": [{"role": "user", "content": "How is the weather in Paris?"}],
    "tools": [
        {
            "name": "get_weather",
            "description": "The weather of a city",
            "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}},
        }
    ],
}


def wishing(wishes: str, **more: Any) -> dict[str, Any]:
    """The call, with what the simulator is asked for."""
    return CALL | {"model": f"{MODEL}+{wishes}"} | more


@pytest.fixture(params=["/anthropic", "/meta/alice/anthropic"])
def path(request: pytest.FixtureRequest) -> str:
    """The base URL below the proxy, plain and with a user."""
    given: str = request.param
    return given


@pytest.fixture
def client(anthropic_client: Any) -> Any:
    return anthropic_client("/anthropic")


def check_message(message: Any) -> None:
    assert message.stop_reason == "end_turn"
    assert message.usage.input_tokens > 0
    assert message.usage.output_tokens > 1
    assert len(message.content[0].text) > 20


def check_stream(events: list[Any], whole: Any) -> None:
    """The raw events of a stream say what the plain call says, and count the same."""
    kinds = [event.type for event in events if event.type not in ("ping", "content_block_delta")]
    assert kinds == [
        "message_start",
        "content_block_start",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    text = "".join(event.delta.text for event in events if event.type == "content_block_delta")
    assert text == whole.content[0].text
    assert events[0].message.usage.input_tokens == whole.usage.input_tokens
    assert events[-2].usage.output_tokens == whole.usage.output_tokens


def test_plain_call(anthropic_client: Any, simulator: Simulator, path: str) -> None:
    """A plain call gives the answer and its usage; key and version are those of the SDK."""
    check_message(anthropic_client(path).messages.create(**CALL))
    seen = simulator.seen()[-1]
    assert seen.target == "/v1/messages"
    assert seen.values(ANTHROPIC_KEY_FIELD)
    assert seen.values("anthropic-version")


def test_stream(anthropic_client: Any, path: str) -> None:
    """Every event of a stream arrives, and the final usage."""
    client = anthropic_client(path)
    check_stream(list(client.messages.create(**CALL, stream=True)), client.messages.create(**CALL))


def test_stream_with_the_helper(client: Any) -> None:
    """`messages.stream` puts the same message together."""
    whole = client.messages.create(**CALL)
    with client.messages.stream(**CALL) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert text == final.content[0].text == whole.content[0].text
    assert final.usage.output_tokens == whole.usage.output_tokens


@pytest.mark.anyio
async def test_async_client(async_anthropic_client: Any, path: str) -> None:
    """The asynchronous client gets the same, whole and streamed."""
    async with async_anthropic_client(path) as client:
        whole = await client.messages.create(**CALL)
        check_message(whole)
        stream = await client.messages.create(**CALL, stream=True)
        check_stream([event async for event in stream], whole)


def test_events_come_one_by_one(client: Any) -> None:
    """The pieces arrive at the provider's pace, not all together at the end."""
    arrivals_s = [
        time.monotonic()
        for event in client.messages.create(**wishing("events=6+interval=0.1"), stream=True)
        if event.type == "content_block_delta"
    ]
    assert len(arrivals_s) == 6
    assert arrivals_s[-1] - arrivals_s[0] > 0.3


def test_thinking(client: Any) -> None:
    """Thinking comes with its signature, whole and streamed."""
    call = CALL | {"max_tokens": 4096, "thinking": {"type": "enabled", "budget_tokens": 2048}}
    whole = client.messages.create(**call)
    assert [block.type for block in whole.content] == ["thinking", "text"]
    with client.messages.stream(**call) as stream:
        final = stream.get_final_message()
    assert final.content[0].thinking == whole.content[0].thinking
    assert final.content[0].signature == whole.content[0].signature


def test_tool_call(client: Any) -> None:
    """A tool call is the same, whole and streamed."""
    whole = client.messages.create(**WEATHER)
    assert whole.stop_reason == "tool_use"
    (block,) = whole.content
    assert block.name == "get_weather"
    assert set(block.input) == {"city"}
    with client.messages.stream(**WEATHER) as stream:
        (streamed,) = stream.get_final_message().content
    assert (streamed.name, streamed.input) == (block.name, block.input)


@pytest.mark.parametrize("stream", [False, True])
def test_gzip(client: Any, stream: bool) -> None:
    """An answer that the provider compressed reaches the SDK compressed, and is read."""
    answer = client.messages.with_raw_response.create(**wishing("encoding=gzip"), stream=stream)
    assert answer.headers["content-encoding"] == "gzip"
    whole = client.messages.create(**CALL)
    if stream:
        check_stream(list(answer.parse()), whole)
    else:
        assert answer.parse().content[0].text == whole.content[0].text


def test_count_tokens(client: Any) -> None:
    """count_tokens counts what the call itself then counts."""
    counted = client.messages.count_tokens(model=MODEL, messages=CALL["messages"])
    assert counted.input_tokens == client.messages.create(**CALL).usage.input_tokens


def test_models(client: Any) -> None:
    """The list of models is Anthropic's, as is one model."""
    assert MODEL in [model.id for model in client.models.list()]
    assert client.models.retrieve(MODEL).display_name == "Claude Sonnet 5.5"


def check_from_provider(error: Any, status: int) -> None:
    assert error.status_code == status
    assert error.request_id == error.body["request_id"]
    assert error.body["error"]["message"] in str(error)
    assert "x-llm-proxy-error-source" not in error.response.headers
    assert error.response.headers["x-llm-proxy-request-id"]


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (400, anthropic.BadRequestError),
        (403, anthropic.PermissionDeniedError),
        (429, anthropic.RateLimitError),
        (500, anthropic.InternalServerError),
        (503, ANTHROPIC_UNAVAILABLE),
        (529, anthropic.OverloadedError),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_errors_of_the_provider(client: Any, status: int, error: Any, stream: bool) -> None:
    """The provider's error raises its class, with the provider's body and request id."""
    with pytest.raises(error) as raised:
        client.messages.create(**wishing(f"status={status}"), stream=stream)
    check_from_provider(raised.value, status)


def test_unknown_model(client: Any) -> None:
    """A model that there is not."""
    with pytest.raises(anthropic.NotFoundError, match="missing-model") as raised:
        client.messages.create(**CALL | {"model": "missing-model"})
    check_from_provider(raised.value, 404)


def test_key_not_accepted(anthropic_client: Any) -> None:
    """A key that the provider does not accept."""
    with pytest.raises(anthropic.AuthenticationError) as raised:
        anthropic_client("/anthropic", api_key="sk-ant-invalid").messages.create(**CALL)
    check_from_provider(raised.value, 401)


def test_error_event_in_mid_stream(client: Any) -> None:
    """An error that the provider sends inside a stream raises with the provider's words."""
    with pytest.raises(anthropic.APIStatusError, match="Overloaded"):
        list(client.messages.create(**wishing("events=10+error_event=4"), stream=True))


def test_close_in_mid_stream(client: Any, simulator: Simulator) -> None:
    """Closing a stream in the middle ends the provider's work at once."""
    before = simulator.aborts
    stream = client.messages.create(**wishing("events=5000", max_tokens=8000), stream=True)
    for _ in range(3):
        next(stream)
    assert simulator.aborts == before
    stream.close()
    assert simulator.sees_abort(before)


@pytest.mark.anyio
async def test_cancelled_task(async_anthropic_client: Any, simulator: Simulator) -> None:
    """Cancelling the task while the provider still thinks ends its work."""
    before = simulator.aborts
    async with async_anthropic_client("/anthropic") as client:
        task = asyncio.create_task(client.messages.create(**wishing("delay=30")))
        await asyncio.sleep(0.3)
        assert simulator.aborts == before
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert simulator.sees_abort(before)


@pytest.mark.parametrize("fault", ["cut", "reset"])
def test_stream_that_the_provider_breaks_off(client: Any, fault: str) -> None:
    """A stream that the provider breaks off raises, with and without the helper; it never just ends."""
    call = wishing(f"events=50+{fault}=2000")
    with pytest.raises(CUT["anthropic"]):
        list(client.messages.create(**call, stream=True))
    with client.messages.stream(**call) as stream, pytest.raises(CUT["anthropic"]):
        stream.get_final_message()


@pytest.mark.anyio
async def test_async_stream_that_the_provider_breaks_off(async_anthropic_client: Any) -> None:
    """The same for the asynchronous client."""
    async with async_anthropic_client("/anthropic") as client:
        stream = await client.messages.create(**wishing("events=50+cut=2000"), stream=True)
        with pytest.raises(CUT["anthropic"]):
            async for _ in stream:
                pass


def test_beta_fields_reach_the_provider(client: Any, simulator: Simulator) -> None:
    """The beta call's fields and its query arrive as the SDK sends them."""
    client.beta.messages.create(**CALL, betas=["one-2026-01-01", "two-2026-02-02"])
    seen = simulator.seen()[-1]
    assert "one-2026-01-01" in ",".join(seen.values("anthropic-beta"))
    assert "two-2026-02-02" in ",".join(seen.values("anthropic-beta"))
    assert seen.target.startswith("/v1/messages")
