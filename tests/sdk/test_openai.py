"""What else the OpenAI SDK does: Responses, embeddings, files, speech, the older completions, paths and queries."""

import hashlib
import json
import re
from typing import Any

import pytest

from tests.sdk.conftest import Simulator
from tests.sdk.installed import CUT, openai

MODEL = "gpt-4o"
TOOL = {
    "type": "function",
    "name": "get_weather",
    "description": "The weather of a city",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    "strict": False,
}


@pytest.fixture
def client(openai_client: Any) -> Any:
    return openai_client("/openai/v1")


def test_response(client: Any) -> None:
    """A response has its text and its usage; it can be fetched again and deleted."""
    made = client.responses.create(model=MODEL, input="Say hello.")
    assert made.status == "completed"
    assert len(made.output_text) > 20
    assert made.usage.input_tokens > 0
    assert made.usage.total_tokens == made.usage.input_tokens + made.usage.output_tokens
    assert client.responses.retrieve(made.id).output_text == made.output_text
    client.responses.delete(made.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(made.id)


def test_streamed_response(client: Any) -> None:
    """Every event of a streamed response arrives, in order, and the last has the usage."""
    whole = client.responses.create(model=MODEL, input="Say hello.")
    events = list(client.responses.create(model=MODEL, input="Say hello.", stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert [events[0].type, events[-1].type] == ["response.created", "response.completed"]
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert text == whole.output_text
    assert events[-1].response.usage.output_tokens == whole.usage.output_tokens


@pytest.mark.anyio
async def test_async_responses(async_openai_client: Any) -> None:
    """The asynchronous client gets the same response, whole and streamed."""
    async with async_openai_client("/openai/v1") as client:
        whole = await client.responses.create(model=MODEL, input="Say hello.")
        stream = await client.responses.create(model=MODEL, input="Say hello.", stream=True)
        events = [event async for event in stream]
    assert events[-1].response.output_text == whole.output_text


def test_response_with_tool_call(client: Any) -> None:
    """A tool call of a response is the same, whole and streamed."""
    call = {"model": MODEL, "input": "How is the weather in Paris?", "tools": [TOOL]}
    (item,) = client.responses.create(**call).output
    assert item.type == "function_call"
    assert item.name == "get_weather"
    assert set(json.loads(item.arguments)) == {"city"}
    events = list(client.responses.create(**call, stream=True))
    kind = "response.function_call_arguments.delta"
    assert "".join(event.delta for event in events if event.type == kind) == item.arguments


def test_streamed_response_that_breaks_off(client: Any) -> None:
    """A response that the provider breaks off raises."""
    stream = client.responses.create(model=MODEL + "+events=50+cut=8000", input="Say hello.", stream=True)
    with pytest.raises(CUT["openai"]):
        list(stream)


def test_close_in_mid_response(client: Any, simulator: Simulator) -> None:
    """Closing the stream of a response ends the provider's work."""
    before = simulator.aborts
    stream = client.responses.create(model=MODEL + "+events=5000", input="Say hello.", stream=True)
    next(stream)
    stream.close()
    assert simulator.sees_abort(before)


def test_cancel_in_background(client: Any) -> None:
    """A response in the background is cancelled by its id."""
    made = client.responses.create(model=MODEL + "+events=30+interval=1", input="Say hello.", background=True)
    assert made.status == "queued"
    assert client.responses.cancel(made.id).status == "cancelled"


def test_error_event_in_mid_stream(client: Any) -> None:
    """An error that the provider sends inside a stream raises with the provider's words."""
    stream = client.chat.completions.create(
        model=MODEL + "+events=10+error_event=3", messages=[{"role": "user", "content": "Hi"}], stream=True
    )
    with pytest.raises(openai.APIError, match="server had an error"):
        list(stream)


def test_embeddings(client: Any) -> None:
    """Embeddings come as numbers, which the SDK unpacks from base64."""
    made = client.embeddings.create(model="text-embedding-3-small", input=["one", "two"])
    assert [len(each.embedding) for each in made.data] == [1536, 1536]
    assert made.data[0].embedding != made.data[1].embedding
    assert made.usage.prompt_tokens == made.usage.total_tokens > 0
    assert all(-1 <= number <= 1 for number in made.data[0].embedding)


@pytest.mark.anyio
async def test_async_embeddings(async_openai_client: Any) -> None:
    """So they do with the asynchronous client."""
    async with async_openai_client("/openai/v1") as client:
        made = await client.embeddings.create(model="text-embedding-3-small", input="one", dimensions=8)
    assert len(made.data[0].embedding) == 8


def test_older_completions(client: Any) -> None:
    """The older completions endpoint, whole and streamed."""
    call = {"model": "gpt-3.5-turbo-instruct", "prompt": "Say hello."}
    whole = client.completions.create(**call)
    pieces = [chunk.choices[0].text for chunk in client.completions.create(**call, stream=True)]
    assert len(pieces) > 2
    assert "".join(pieces) == whole.choices[0].text


def test_file(client: Any) -> None:
    """A file of 3 MiB goes up as multipart and comes back byte for byte."""
    content = hashlib.sha256(b"file").digest() * (3 * 1024 * 1024 // 32)
    made = client.files.create(file=("data.bin", content), purpose="user_data")
    assert (made.filename, made.bytes, made.purpose) == ("data.bin", len(content), "user_data")
    assert made.id in [each.id for each in client.files.list()]
    assert client.files.retrieve(made.id).bytes == len(content)
    assert client.files.content(made.id).read() == content
    assert client.files.delete(made.id).deleted


@pytest.mark.anyio
async def test_async_file(async_openai_client: Any) -> None:
    """The asynchronous client uploads too."""
    async with async_openai_client("/openai/v1") as client:
        made = await client.files.create(file=("a.jsonl", b'{"a": 1}\n'), purpose="batch")
        assert (await client.files.content(made.id)).read() == b'{"a": 1}\n'


def test_speech(client: Any) -> None:
    """Binary answers, read whole and as a stream."""
    call = {"model": "tts-1", "voice": "alloy", "input": "Hello."}
    whole = client.audio.speech.create(**call).read()
    assert len(whole) == 16384
    with client.audio.speech.with_streaming_response.create(**call) as answer:
        assert b"".join(answer.iter_bytes()) == whole


def test_models(client: Any) -> None:
    """One model by its name, and one that there is not."""
    assert client.models.retrieve(MODEL).id == MODEL
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("missing-model")


def test_target_reaches_the_provider_as_it_was_sent(client: Any, simulator: Simulator) -> None:
    """A path and a query with escapes arrive as the SDK wrote them."""
    sent: list[bytes] = []

    class Watching(type(client._client._transport)):  # type: ignore[misc]  # whichever httpx this SDK is built on
        def handle_request(self, request: Any) -> Any:
            sent.append(request.url.raw_path)
            return super().handle_request(request)

    watched = client.with_options()
    watched._client._transport = Watching()
    watched.models.retrieve("ft:gpt-4o:acme x:é%", extra_query={"after": "x y+z&w", "f[]": ["1", ""]})
    assert simulator.seen()[-1].target == sent[0].decode().removeprefix("/openai")


def test_fields_reach_the_provider(openai_client: Any, simulator: Simulator) -> None:
    """Organization, project, the SDK's own fields and the caller's arrive; the key is the caller's."""
    client = openai_client("/openai/v1", organization="org-1", project="proj-1")
    client.models.list(extra_headers={"X-Mine": "mine", "X-User-ID": "alice"})
    seen = simulator.seen()[-1]
    assert seen.values("openai-organization") == ["org-1"]
    assert seen.values("openai-project") == ["proj-1"]
    assert seen.values("x-mine") == ["mine"]
    assert seen.values("x-stainless-lang") == ["python"]
    assert seen.values("accept-encoding") == [client._client.headers["accept-encoding"]]
    assert seen.values("user-agent") == [f"OpenAI/Python {openai.__version__}"]
    (key,) = seen.values("authorization")
    assert key.startswith("Bearer <")


def test_limits_of_the_provider(client: Any) -> None:
    """The provider's rate limits, request id and cookies reach the caller."""
    headers = client.models.with_raw_response.list().headers
    assert headers["x-ratelimit-remaining-tokens"] == "29999984"
    assert headers["x-request-id"].startswith("req_")
    assert len(headers.get_list("set-cookie")) == 2


def test_structured_answer(client: Any) -> None:
    """`parse` reads an answer in the caller's own schema."""
    pydantic = pytest.importorskip("pydantic")
    shape = pydantic.create_model("Place", city=(str, ...), people=(int, ...))
    call = {"model": MODEL, "messages": [{"role": "user", "content": "Name a place."}]}
    parsed = client.chat.completions.parse(**call, response_format=shape).choices[0].message.parsed
    assert isinstance(parsed, shape)


@pytest.mark.parametrize(
    "more", [{}, {"tools": "given"}, {"n": 2}, {"stream_options": {"include_usage": False}}], ids=str
)
def test_usage_is_asked_for_unseen(openai_client: Any, simulator: Simulator, more: dict[str, Any]) -> None:
    """A stream whose usage the proxy asks for is, to its caller, the stream that it would have had without that."""
    if "tools" in more:
        more = {"tools": [{"type": "function", "function": {key: TOOL[key] for key in ("name", "parameters")}}]}
    streams = []
    for base_url in ("/openai/v1", "/unasked/v1"):
        stream = openai_client(base_url).chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": "How is the weather?"}], stream=True, **more
        )
        chunks = [chunk.model_dump_json(exclude_unset=True, exclude={"id", "created"}) for chunk in stream]
        streams.append([json.loads(re.sub(r'"call_\w+"', '"call"', chunk)) for chunk in chunks])
    asked, unasked = simulator.seen(2)
    assert asked.body_bytes != unasked.body_bytes
    assert streams[0] == streams[1]
    assert all("usage" not in chunk and chunk["choices"] for chunk in streams[0])
