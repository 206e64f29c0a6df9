"""google-genai at `P/gemini`: generate whole and streamed, tools, counts, embeddings, models, files, errors, cancel."""

import asyncio
import hashlib
import io
import time
from typing import Any

import pytest

from tests.sdk.conftest import Simulator
from tests.sdk.installed import CUT, GEMINI_VERSION, genai

MODEL = "gemini-2.5-flash"
WEATHER = {
    "model": MODEL,
    "contents": "How is the weather in Paris?",
    "config": {
        "tools": [
            {
                "function_declarations": [
                    {
                        "name": "get_weather",
                        "description": "The weather of a city",
                        "parameters": {"type": "OBJECT", "properties": {"city": {"type": "STRING"}}},
                    }
                ]
            }
        ],
        "automatic_function_calling": {"disable": True},
    },
}


def call(wishes: str = "") -> dict[str, Any]:
    return {"model": f"{MODEL}+{wishes}" if wishes else MODEL, "contents": "Say hello."}


@pytest.fixture(params=["/gemini", "/meta/alice/gemini"])
def path(request: pytest.FixtureRequest) -> str:
    """The base URL below the proxy, plain and with a user."""
    given: str = request.param
    return given


@pytest.fixture
def client(gemini_client: Any) -> Any:
    return gemini_client("/gemini")


def check_answer(answer: Any) -> None:
    assert len(answer.text) > 20
    assert answer.model_version == MODEL
    usage = answer.usage_metadata
    spent = usage.candidates_token_count + usage.thoughts_token_count
    assert usage.total_token_count == usage.prompt_token_count + spent


def check_stream(chunks: list[Any], whole: Any) -> None:
    assert len(chunks) > 2
    assert "".join(chunk.text or "" for chunk in chunks) == whole.text
    assert all(chunk.usage_metadata for chunk in chunks)
    assert chunks[-1].usage_metadata.total_token_count == whole.usage_metadata.total_token_count
    assert chunks[-1].candidates[0].finish_reason == "STOP"


def test_plain_call(gemini_client: Any, simulator: Simulator, path: str) -> None:
    """A plain call gives the answer and its usage; the path keeps its colon and the SDK's version."""
    client = gemini_client(path)
    check_answer(client.models.generate_content(**call()))
    seen = simulator.seen()[-1]
    assert seen.target == f"/{GEMINI_VERSION}/models/{MODEL}:generateContent"
    assert seen.values("x-goog-api-key")


@pytest.mark.parametrize("version", ["v1", "v1beta", "v1alpha"])
def test_versions(gemini_client: Any, simulator: Simulator, version: str) -> None:
    """Whatever version of the interface is asked for, it is reached."""
    client = gemini_client("/gemini", api_version=version)
    check_answer(client.models.generate_content(**call()))
    assert simulator.seen()[-1].target.startswith(f"/{version}/")


def test_stream(gemini_client: Any, path: str) -> None:
    """Every piece of a stream arrives, and the final usage."""
    client = gemini_client(path)
    chunks = list(client.models.generate_content_stream(**call()))
    check_stream(chunks, client.models.generate_content(**call()))


@pytest.mark.anyio
async def test_async_client(gemini_client: Any, path: str) -> None:
    """The asynchronous side gets the same, whole and streamed."""
    client = gemini_client(path).aio
    whole = await client.models.generate_content(**call())
    check_answer(whole)
    check_stream([chunk async for chunk in await client.models.generate_content_stream(**call())], whole)
    await client.aclose()


def test_events_come_one_by_one(client: Any) -> None:
    """The pieces arrive at the provider's pace, not all together at the end."""
    stream = client.models.generate_content_stream(**call("events=6+interval=0.1"))
    arrivals_s = [time.monotonic() for _ in stream]
    assert len(arrivals_s) == 6
    assert arrivals_s[-1] - arrivals_s[0] > 0.3


def test_tool_call(client: Any) -> None:
    """A tool call is the same, whole and streamed."""
    (whole,) = client.models.generate_content(**WEATHER).function_calls
    assert whole.name == "get_weather"
    assert set(whole.args) == {"city"}
    chunks = client.models.generate_content_stream(**WEATHER)
    (streamed,) = [made for chunk in chunks for made in chunk.function_calls or []]
    assert (streamed.name, streamed.args) == (whole.name, whole.args)


def test_gzip(client: Any) -> None:
    """An answer that the provider compressed is read, whole and streamed."""
    whole = client.models.generate_content(**call("encoding=gzip"))
    assert whole.sdk_http_response.headers["content-encoding"] == "gzip"
    assert whole.text == client.models.generate_content(**call()).text
    check_stream(list(client.models.generate_content_stream(**call("encoding=gzip"))), whole)


def test_count_tokens(client: Any) -> None:
    """count_tokens counts what the call itself then counts."""
    counted = client.models.count_tokens(**call())
    assert counted.total_tokens == client.models.generate_content(**call()).usage_metadata.prompt_token_count


def test_embeddings(client: Any) -> None:
    """Embeddings come as numbers, one list for each text."""
    made = client.models.embed_content(model="gemini-embedding-001", contents=["one", "two"])
    assert {len(each.values) for each in made.embeddings} == {768}


def test_models(client: Any) -> None:
    """The list of models is Gemini's, as is one model."""
    assert f"models/{MODEL}" in [model.name for model in client.models.list()]
    assert client.models.get(model=MODEL).display_name == "Gemini 2.5 Flash"


@pytest.mark.parametrize("size_bytes", [5000, 9 * 1024 * 1024])
def test_file(gemini_client: Any, simulator: Simulator, path: str, size_bytes: int) -> None:
    """A resumable upload: its start and each of its pieces pass the proxy, and every byte arrives.

    The SDK sends 8 MiB at a time to the URL that the start of the upload answers with. A file of 9 MiB is two.
    """
    client = gemini_client(path)
    content = hashlib.sha256(b"file").digest() * (size_bytes // 32 + 1)
    made = client.files.upload(file=io.BytesIO(content), config={"mime_type": "application/octet-stream"})
    pieces = -(-len(content) // (8 * 1024 * 1024))
    start, *parts = simulator.seen(1 + pieces)
    assert start.target.startswith(f"/upload/{GEMINI_VERSION}/files")
    assert sum(part.body_bytes for part in parts) == len(content)
    for seen in (start, *parts):
        assert seen.target.startswith("/upload/")
        assert seen.values("via")
    assert made.size_bytes == len(content)
    assert made.state == "ACTIVE"
    assert made.name in [file.name for file in client.files.list()]
    assert client.files.get(name=made.name).sha256_hash == made.sha256_hash
    client.files.delete(name=made.name)
    with pytest.raises(genai.errors.ClientError):
        client.files.get(name=made.name)


@pytest.mark.anyio
async def test_async_file(gemini_client: Any, simulator: Simulator) -> None:
    """The asynchronous side uploads through the proxy too."""
    client = gemini_client("/gemini").aio
    made = await client.files.upload(file=io.BytesIO(b"hello" * 100), config={"mime_type": "text/plain"})
    assert made.size_bytes == 500
    for seen in simulator.seen(2):
        assert seen.target.startswith("/upload/")
        assert seen.values("via")
    await client.aclose()


def check_from_provider(error: Any, status: int) -> None:
    assert error.code == status
    assert error.details["error"]["message"] == error.message
    headers = error.response.headers
    assert "x-llm-proxy-error-source" not in headers
    assert headers["x-llm-proxy-request-id"]


@pytest.mark.parametrize(
    ("status", "name", "word"),
    [
        (400, "ClientError", "INVALID_ARGUMENT"),
        (403, "ClientError", "PERMISSION_DENIED"),
        (429, "ClientError", "RESOURCE_EXHAUSTED"),
        (500, "ServerError", "INTERNAL"),
        (503, "ServerError", "UNAVAILABLE"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_errors_of_the_provider(client: Any, status: int, name: str, word: str, stream: bool) -> None:
    """The provider's error raises its class, with the provider's status and words."""
    models = client.models
    with pytest.raises(getattr(genai.errors, name)) as raised:
        if stream:
            list(models.generate_content_stream(**call(f"status={status}")))
        else:
            models.generate_content(**call(f"status={status}"))
    check_from_provider(raised.value, status)
    assert raised.value.status == word


def test_unknown_model(client: Any) -> None:
    """A model that there is not."""
    with pytest.raises(genai.errors.ClientError, match="missing-model") as raised:
        client.models.generate_content(model="missing-model", contents="Hi")
    check_from_provider(raised.value, 404)


def test_key_not_accepted(gemini_client: Any) -> None:
    """A key that the provider does not accept is its 400, with its reason."""
    client = gemini_client("/gemini", api_key="AIza-invalid")
    with pytest.raises(genai.errors.ClientError) as raised:
        client.models.generate_content(**call())
    check_from_provider(raised.value, 400)
    assert raised.value.details["error"]["details"][0]["reason"] == "API_KEY_INVALID"


def test_error_event_in_mid_stream(client: Any) -> None:
    """An error that the provider sends inside a stream raises with the provider's words."""
    with pytest.raises(genai.errors.ServerError, match="overloaded"):
        list(client.models.generate_content_stream(**call("events=10+error_event=4")))


@pytest.mark.anyio
@pytest.mark.parametrize("where", ["before the head", "in the stream"])
async def test_cancelled_task(gemini_client: Any, simulator: Simulator, where: str) -> None:
    """Cancelling the task ends the provider's work: while it still thinks, and while it speaks."""
    client = gemini_client("/gemini").aio
    before = simulator.aborts
    reading = asyncio.Event()
    wish = "delay=30" if where == "before the head" else "events=5000"

    async def read() -> None:
        async for _ in await client.models.generate_content_stream(**call(wish)):
            reading.set()

    task = asyncio.create_task(read())
    if where == "before the head":
        await asyncio.sleep(0.3)
    else:
        await reading.wait()
    assert simulator.aborts == before
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await client.aclose()
    assert simulator.sees_abort(before)


def test_close_in_mid_stream(client: Any, simulator: Simulator) -> None:
    """Leaving a stream in the middle ends the provider's work at once."""
    before = simulator.aborts
    stream = client.models.generate_content_stream(**call("events=5000"))
    for _ in range(3):
        next(stream)
    assert simulator.aborts == before
    stream.close()
    assert simulator.sees_abort(before)


@pytest.mark.parametrize("fault", ["cut", "reset"])
def test_stream_that_the_provider_breaks_off(client: Any, fault: str) -> None:
    """A stream that the provider breaks off raises; it never just ends."""
    with pytest.raises(CUT["google-genai"]):
        list(client.models.generate_content_stream(**call(f"events=50+{fault}=3000")))


@pytest.mark.anyio
async def test_async_stream_that_the_provider_breaks_off(gemini_client: Any) -> None:
    """The same for the asynchronous side."""
    client = gemini_client("/gemini").aio
    with pytest.raises(CUT["google-genai"]):
        async for _ in await client.models.generate_content_stream(**call("events=50+cut=3000")):
            pass
    await client.aclose()
