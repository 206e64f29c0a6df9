"""`make test-openai` and its like: a provider, seen through the proxy by a plain HTTP client.

A proxy is started for it, with the real provider behind it, or with the simulator (``--upstream simulator``,
which needs no key). Five things are asked: the list of models, an answer, a streamed answer, an answer for a
model that does not exist, an answer for a wrong key. Status, shape and the proxy's own fields are checked.

Without a key the check is skipped, in a clear line, with exit status 0. A key is never printed.
"""

import argparse
import http.client
import json
import os
import secrets
import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Final

from programs import LOOPBACK, Failed, Program, free_port, running, stop_on_sigterm

LIMIT_S: Final = 120.0
QUESTION: Final = "Answer with the one word: hello"
SIMULATED_KEY: Final = "simulated"
WRONG_KEY: Final = "invalid-key"
MISSING_MODEL: Final = "missing-model"
REQUEST_ID: Final = "X-LLM-Proxy-Request-ID"
ERROR_SOURCE: Final = "X-LLM-Proxy-Error-Source"
SHOWN: Final = 60

Json = Any  # what json.loads gives


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """How a provider is asked, and where in its answers the interesting things stand."""

    models_path: str
    model_names: Callable[[Json], list[str]]
    answer_path: Callable[[str, bool], str]
    """From the model and whether to stream."""
    body: Callable[[str, bool], dict[str, object]]
    text: Callable[[Json], str]
    """The text of a whole answer."""
    tokens: Callable[[Json], int]
    """How many tokens a whole answer says it cost."""
    piece: Callable[[Json], str]
    """The text in one event of a stream."""
    is_last: Callable[[str], bool]
    """Whether the data of an event are those that end a good stream."""
    error_message: Callable[[Json], str]


def openai_body(model: str, stream: bool) -> dict[str, object]:
    asked: dict[str, object] = {"model": model, "messages": [{"role": "user", "content": QUESTION}]}
    return asked | {"stream": True, "stream_options": {"include_usage": True}} if stream else asked


def openai_dialect(prefix: str) -> Dialect:
    return Dialect(
        models_path=f"{prefix}/models",
        model_names=lambda told: [each["id"] for each in told["data"]],
        answer_path=lambda _model, _stream: f"{prefix}/chat/completions",
        body=openai_body,
        text=lambda told: told["choices"][0]["message"]["content"],
        tokens=lambda told: told["usage"]["total_tokens"],
        piece=lambda event: "".join(each["delta"].get("content") or "" for each in event["choices"]),
        is_last=lambda data: data == "[DONE]",
        error_message=lambda told: told["error"]["message"],
    )


def anthropic_body(model: str, stream: bool) -> dict[str, object]:
    return {
        "model": model,
        "max_tokens": 32,
        "stream": stream,
        "messages": [{"role": "user", "content": QUESTION}],
    }


ANTHROPIC: Final = Dialect(
    models_path="/anthropic/v1/models",
    model_names=lambda told: [each["id"] for each in told["data"]],
    answer_path=lambda _model, _stream: "/anthropic/v1/messages",
    body=anthropic_body,
    text=lambda told: "".join(each.get("text", "") for each in told["content"]),
    tokens=lambda told: told["usage"]["input_tokens"] + told["usage"]["output_tokens"],
    piece=lambda event: event.get("delta", {}).get("text", ""),
    is_last=lambda data: json.loads(data)["type"] == "message_stop",
    error_message=lambda told: told["error"]["message"],
)


def gemini_text(told: Json) -> str:
    parts = told["candidates"][0].get("content", {}).get("parts", ()) if told.get("candidates") else ()
    return "".join(part.get("text", "") for part in parts)


GEMINI: Final = Dialect(
    models_path="/gemini/v1beta/models",
    model_names=lambda told: [each["name"].removeprefix("models/") for each in told["models"]],
    answer_path=lambda model, stream: (
        f"/gemini/v1beta/models/{model}:" + ("streamGenerateContent?alt=sse" if stream else "generateContent")
    ),
    body=lambda _model, _stream: {"contents": [{"role": "user", "parts": [{"text": QUESTION}]}]},
    text=gemini_text,
    tokens=lambda told: told["usageMetadata"]["totalTokenCount"],
    piece=gemini_text,
    is_last=lambda data: any("finishReason" in each for each in json.loads(data).get("candidates", ())),
    error_message=lambda told: told["error"]["message"],
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """One provider: its dialect, its key, and the models to ask, the cheap ones first."""

    title: str
    dialect: Dialect
    key_variable: str
    key_fields: Callable[[str], dict[str, str]]
    cheap_models: tuple[str, ...]
    """Beginnings of names; the first that the list of models has is asked."""


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


SUBJECTS: Final[Mapping[str, Subject]] = {
    "openai": Subject(
        title="OpenAI",
        dialect=openai_dialect("/openai/v1"),
        key_variable="OPENAI_API_KEY",
        key_fields=bearer,
        cheap_models=("gpt-4o-mini", "gpt-4.1-nano", "gpt-5-nano", "gpt-"),
    ),
    "anthropic": Subject(
        title="Anthropic",
        dialect=ANTHROPIC,
        key_variable="ANTHROPIC_API_KEY",
        key_fields=lambda key: {"x-api-key": key, "anthropic-version": "2023-06-01"},
        cheap_models=("claude-haiku", "claude-3-5-haiku", "claude-3-haiku", "claude-"),
    ),
    "gemini": Subject(
        title="Gemini",
        dialect=GEMINI,
        key_variable="GEMINI_API_KEY",
        key_fields=lambda key: {"x-goog-api-key": key},
        cheap_models=("gemini-2.5-flash-lite", "gemini-2.5-flash", "gemini-flash", "gemini-"),
    ),
    "groq": Subject(
        title="Groq",
        dialect=openai_dialect("/groq/v1"),
        key_variable="GROQ_API_KEY",
        key_fields=bearer,
        cheap_models=("llama-3.1-8b-instant", "openai/gpt-oss-20b", "llama-"),
    ),
}


class Caller:
    """Asks through the proxy on ``port`` and prints what came."""

    def __init__(self, subject: Subject, port: int, key: str) -> None:
        self._subject = subject
        self._dialect = subject.dialect
        self._port = port
        self._key = key

    def check_all(self) -> None:
        """Ask all five; raises Failed at the first that is not as it should be."""
        model = self._list_models()
        self._answer(model)
        self._stream(model)
        self._refused("a model that does not exist", MISSING_MODEL, self._key)
        self._refused("a wrong key", model, WRONG_KEY)

    def _list_models(self) -> str:
        """The model to ask, out of those that the provider lists."""
        names = self._dialect.model_names(self._json("the list of models", "GET", self._dialect.models_path))
        for beginning in self._subject.cheap_models:
            for name in names:
                if name.startswith(beginning):
                    self._print("models", f"{len(names)} listed; {name} is asked")
                    return name
        raise Failed(f"{self._subject.title} lists no model that this check knows: {', '.join(names[:20])}")

    def _answer(self, model: str) -> None:
        body = self._dialect.body(model, False)
        told = self._json("an answer", "POST", self._dialect.answer_path(model, False), body)
        text, tokens = self._dialect.text(told), self._dialect.tokens(told)
        if not text or tokens <= 0:
            raise Failed(f"The answer has {'no text' if not text else 'no count of tokens'}.")
        self._print("answer", f"200, {tokens} tokens, {text.strip()[:SHOWN]!r}")

    def _stream(self, model: str) -> None:
        path, body = self._dialect.answer_path(model, True), self._dialect.body(model, True)
        with ExitStack() as stack:
            response = self._ask(stack, "POST", path, body, self._key)
            self._expect("a streamed answer", response, http.HTTPStatus.OK)
            kind = response.getheader("Content-Type", "")
            if not kind.startswith("text/event-stream"):
                raise Failed(f"The streamed answer is of type {kind!r}, not text/event-stream.")
            text, count, ended = "", 0, False
            while line := response.readline():
                if not line.startswith(b"data:"):
                    continue
                data = line[len(b"data:") :].strip().decode("utf-8")
                count += 1
                ended = self._dialect.is_last(data)
                text += self._dialect.piece(json.loads(data)) if data != "[DONE]" else ""
        if not text or not ended:
            raise Failed("The stream carried no text." if ended else f"The stream broke off after {count} events.")
        self._print("stream", f"200, {count} events, {text.strip()[:SHOWN]!r}")

    def _refused(self, what: str, model: str, key: str) -> None:
        """The provider's own refusal has to arrive as it was written, and not marked as the proxy's."""
        path, body = self._dialect.answer_path(model, False), self._dialect.body(model, False)
        with ExitStack() as stack:
            response = self._ask(stack, "POST", path, body, key)
            if not 400 <= response.status < 500:
                raise Failed(f"For {what} the answer was {response.status}, not an error of the caller's.")
            if response.getheader(ERROR_SOURCE):
                raise Failed(f"For {what} the answer is marked as the proxy's own error.")
            message = self._dialect.error_message(json.loads(response.read()))
        # A provider may repeat a part of the key in its message.
        self._print("refused", f"{what}: {response.status}, a message of {len(message)} characters")

    def _json(self, what: str, method: str, path: str, body: Mapping[str, object] | None = None) -> Json:
        with ExitStack() as stack:
            response = self._ask(stack, method, path, body, self._key)
            self._expect(what, response, http.HTTPStatus.OK)
            return json.loads(response.read())

    def _ask(
        self, stack: ExitStack, method: str, path: str, body: Mapping[str, object] | None, key: str
    ) -> http.client.HTTPResponse:
        connection = http.client.HTTPConnection(LOOPBACK, self._port, timeout=LIMIT_S)
        stack.callback(connection.close)
        fields = self._subject.key_fields(key)
        if body is not None:
            fields["Content-Type"] = "application/json"
        connection.request(method, path, None if body is None else json.dumps(body), fields)
        response = connection.getresponse()
        if not response.getheader(REQUEST_ID):
            raise Failed(f"The answer to {method} {path} carries no {REQUEST_ID}.")
        return response

    def _expect(self, what: str, response: http.client.HTTPResponse, status: int) -> None:
        if response.status != status:
            said = response.read().decode("utf-8", "replace").replace(self._key, "(the key)")
            who = "the proxy" if response.headers.get("X-LLM-Proxy-Error-Source") else self._subject.title
            raise Failed(f"Asked for {what}, {who} answered {response.status}: {said[:500]}")

    def _print(self, what: str, text: str) -> None:
        print(f"  {what:8} {text}", flush=True)


def check(subject: Subject, *, simulated: bool, key: str) -> None:
    """Start what is needed, ask everything, stop it all."""
    port = free_port()
    arguments = ["run", "--port", f"tcp:{port}:interface={LOOPBACK}"]
    environ = {
        "LLM_PROXY_IDENTITY_SECRET": secrets.token_hex(),
        "LLM_PROXY_LEDGER": "off",
    }  # nothing is kept of this run
    with ExitStack() as stack:
        if simulated:
            arguments += ["--config", "configs/demo.yml"]
            upstream = free_port()
            environ["SIMULATOR_PORT"] = str(upstream)
            simulator = Program("simulator", "simulate", "--port", str(upstream), port=upstream, environ={})
            stack.enter_context(running(simulator)).wait_until_ready()
        proxy = Program("proxy", *arguments, port=port, environ=environ)
        stack.enter_context(running(proxy)).wait_until_ready("/health/ready")
        Caller(subject, port, key).check_all()


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("provider", choices=tuple(SUBJECTS))
    options.add_argument("--upstream", choices=("live", "simulator"), default="live")
    chosen = options.parse_args()
    stop_on_sigterm()
    subject = SUBJECTS[chosen.provider]
    simulated = chosen.upstream == "simulator"
    key = SIMULATED_KEY if simulated else os.environ.get(subject.key_variable, "").strip()
    if not key:
        print(
            f"test-{chosen.provider}: skipped, {subject.key_variable} is not set "
            f"(without a key: make test-{chosen.provider} UPSTREAM=simulator)"
        )
        return 0
    if not (key.isascii() and key.isprintable()):  # it could not be sent, and the error would quote it
        print(
            f"test-{chosen.provider}: {subject.key_variable} holds characters that no key has",
            file=sys.stderr,
        )
        return 1
    print(f"test-{chosen.provider}: {'the simulator' if simulated else subject.title}, through the proxy")
    try:
        check(subject, simulated=simulated, key=key)
    except Failed as failed:
        print(f"test-{chosen.provider}: {failed}", file=sys.stderr)
        return 1
    except (OSError, http.client.HTTPException, LookupError, ValueError) as error:
        # A connection that broke, or an answer of another shape. Neither text holds the key.
        print(f"test-{chosen.provider}: {type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
