"""Where the proxy and the simulator are, clients for them, and what the simulator saw.

`run.sh` starts both and says where they are (`stack.py`). The rule: after the whole run, everything that reached
the simulator has passed the proxy, which leaves its `Via` on each request.
"""

import json
import os
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import pytest

from tests.sdk.installed import VERSIONS, anthropic, genai, groq, openai

KEY: Final = "sk-sdk-tests-0123456789"
ABORT_LIMIT_S: Final = 1.0
_LOOK_AGAIN_S: Final = 0.01


def pytest_report_header() -> str:
    return "SDKs: " + ", ".join(f"{name} {number}" for name, number in VERSIONS.items())


@dataclass(frozen=True, slots=True)
class Seen:
    """A request as the simulator received it. Keys are masked."""

    target: str
    fields: list[tuple[str, str]]
    aborted: bool
    body_bytes: int

    def values(self, name: str) -> list[str]:
        return [value for given, value in self.fields if given.lower() == name]


class Simulator:
    """What the provider behind the proxy saw. It is asked directly."""

    def __init__(self, url: str) -> None:
        self.url = url

    def _show(self, path: str) -> Any:
        with urllib.request.urlopen(f"{self.url}/_simulator/{path}", timeout=10) as answer:
            return json.load(answer)

    def seen(self, count: int = 1) -> list[Seen]:
        """The last requests, the oldest first."""
        return [
            Seen(
                target=noted["target"],
                fields=[(name, value) for name, value in noted["fields"]],
                aborted=noted["aborted"],
                body_bytes=noted["body_bytes"],
            )
            for noted in self._show(f"requests?last={count}")["requests"]
        ]

    def _count(self, name: str) -> int:
        count: int = self._show("connections")[name]
        return count

    @property
    def requests(self) -> int:
        """How many requests came, up to now."""
        return self._count("requests")

    @property
    def aborts(self) -> int:
        """How many answers the caller did not wait for, up to now."""
        return self._count("aborted")

    def sees_abort(self, before: int) -> bool:
        """Whether one more answer than `before` was aborted, within ABORT_LIMIT_S from now."""
        deadline_s = time.monotonic() + ABORT_LIMIT_S
        while self.aborts == before:
            if time.monotonic() > deadline_s:
                return False
            time.sleep(_LOOK_AGAIN_S)
        return True


def _address(variable: str) -> str:
    try:
        return os.environ[variable]
    except KeyError:
        raise pytest.UsageError(f"{variable} is not set: start these tests with tests/sdk/run.sh") from None


@pytest.fixture(scope="session")
def proxy_url() -> str:
    """Scheme, host and port of the proxy: the `P` of every base URL."""
    return _address("PROXY_URL")


@pytest.fixture(scope="session")
def simulator() -> Iterator[Simulator]:
    """The provider. At the end, nothing must have reached it but through the proxy."""
    watched = Simulator(_address("SIMULATOR_URL"))
    yield watched
    seen = watched.seen(1000)
    assert seen
    assert [each.target for each in seen if not each.values("via")] == []


@pytest.fixture(autouse=True)
def _watched(simulator: Simulator) -> None:
    """Every test is one whose requests are looked at in the end."""


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


Client = Callable[..., Any]


def _maker(plain: Any, proxy_url: str) -> Client:
    def make(path: str, *, api_key: str = KEY, **options: Any) -> Any:
        # Without retries, an error is what was answered to the one request.
        return plain(base_url=proxy_url + path, api_key=api_key, **{"max_retries": 0, **options})

    return make


@pytest.fixture
def openai_client(proxy_url: str) -> Client:
    """Makes an OpenAI client: `openai_client("/openai/v1")`."""
    return _maker(openai.OpenAI, proxy_url)


@pytest.fixture
def async_openai_client(proxy_url: str) -> Client:
    return _maker(openai.AsyncOpenAI, proxy_url)


@pytest.fixture
def anthropic_client(proxy_url: str) -> Client:
    """Makes an Anthropic client: `anthropic_client("/anthropic")`."""
    return _maker(anthropic.Anthropic, proxy_url)


@pytest.fixture
def async_anthropic_client(proxy_url: str) -> Client:
    return _maker(anthropic.AsyncAnthropic, proxy_url)


@pytest.fixture
def groq_client(proxy_url: str) -> Client:
    """Makes a Groq client: `groq_client("/groq")`."""
    return _maker(groq.Groq, proxy_url)


@pytest.fixture
def async_groq_client(proxy_url: str) -> Client:
    return _maker(groq.AsyncGroq, proxy_url)


@pytest.fixture
def gemini_client(proxy_url: str) -> Client:
    """Makes a Gemini client, for both its sync and its async side: `gemini_client("/gemini")`."""

    def make(path: str, *, api_key: str = KEY, **options: Any) -> Any:
        return genai.Client(api_key=api_key, http_options={"base_url": proxy_url + path, **options})

    return make
