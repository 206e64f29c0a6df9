"""Gemini's generateContent and its like: whole, as SSE, and as one JSON array in pieces.

Shapes: https://ai.google.dev/api/generate-content. The rules kept here: lines end with CRLF; there is no
`[DONE]`; `usageMetadata` is in every chunk and cumulative; `candidatesTokenCount` leaves out the thoughts.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

import msgspec

from llmproxy.simulate import catalog
from llmproxy.simulate.answer import Answer, Call, Question, Tool, answer_to, dumps
from llmproxy.simulate.ask import Ask, House, Refusal, Reply, new_id
from llmproxy.simulate.dialects import GEMINI_ARRAY
from llmproxy.simulate.openai_chat import whole_number
from llmproxy.simulate.openai_more import vector

JSON: Final = b"application/json; charset=UTF-8"


def _get(value: object, name: str) -> Any:
    """A member of a JSON object: in camelCase or, as Protocol Buffers' JSON allows too, in snake_case."""
    if not isinstance(value, Mapping):
        return None
    snake = re.sub("[A-Z]", lambda big: "_" + big[0].lower(), name)
    return value[name] if name in value else value.get(snake)


def _parts(content: object) -> list[Mapping[str, Any]]:
    parts = content.get("parts") if isinstance(content, Mapping) else None
    return [part for part in parts if isinstance(part, Mapping)] if isinstance(parts, list) else []


def _text(content: object) -> str:
    return "\n".join(part["text"] for part in _parts(content) if isinstance(part.get("text"), str))


def _choice(body: Mapping[str, Any]) -> str:
    wanted = _get(_get(body, "toolConfig"), "functionCallingConfig")
    names = _get(wanted, "allowedFunctionNames") or []
    mode = str(_get(wanted, "mode") or "AUTO").upper()
    if mode == "ANY":
        return f"={names[0]}" if names else "required"
    return "none" if mode == "NONE" else "auto"


def _question(body: Mapping[str, Any], model: str) -> Question:
    contents = body.get("contents")
    if not isinstance(contents, list) or not contents:
        raise Refusal(400, "* GenerateContentRequest.contents: contents is not specified\n")
    config = _get(body, "generationConfig")
    system = _text(_get(body, "systemInstruction"))
    declared = [function for tool in body.get("tools") or [] for function in _get(tool, "functionDeclarations") or []]
    schema = _get(config, "responseJsonSchema") or _get(config, "responseSchema")
    if schema is None and _get(config, "responseMimeType") == "application/json":
        schema = {"properties": {"answer": {"type": "string"}}}
    budget = _get(_get(config, "thinkingConfig"), "thinkingBudget")
    return Question(
        texts=([system] if system else []) + [_text(content) for content in contents],
        asked=_text(contents[-1]),
        attachments=sum(
            1 for content in contents for part in _parts(content) if _get(part, "inlineData") or _get(part, "fileData")
        ),
        after_tool=any(_get(part, "functionResponse") for part in _parts(contents[-1])),
        tools=[
            Tool(name=f["name"], schema=_get(f, "parametersJsonSchema") or _get(f, "parameters") or {})
            for f in declared
            if isinstance(f, Mapping) and isinstance(f.get("name"), str)
        ],
        tool_choice=_choice(body),
        max_tokens=whole_number(_get(config, "maxOutputTokens")),
        schema=schema,
        thinks=catalog.thinks(catalog.GEMINI, model) and budget != 0,
    )


def _usage(answer: Answer, candidates: int, thoughts: int) -> dict[str, Any]:
    usage: dict[str, Any] = {"promptTokenCount": answer.prompt_tokens}
    if candidates:
        usage["candidatesTokenCount"] = candidates
    usage["totalTokenCount"] = answer.prompt_tokens + candidates + thoughts
    if answer.cached_tokens:
        usage["cachedContentTokenCount"] = answer.cached_tokens
        usage["cacheTokensDetails"] = [{"modality": "TEXT", "tokenCount": answer.cached_tokens}]
    usage["promptTokensDetails"] = [{"modality": "TEXT", "tokenCount": answer.prompt_tokens}]
    if thoughts:
        usage["thoughtsTokenCount"] = thoughts
    return usage


def _chunk(
    parts: list[dict[str, Any]], stop: str | None, usage: dict[str, Any], last: dict[str, Any]
) -> dict[str, Any]:
    candidate: dict[str, Any] = {"content": {"parts": parts, "role": "model"}}
    if stop is not None:
        candidate["finishReason"] = "MAX_TOKENS" if stop == "length" else "STOP"
    return {"candidates": [candidate | {"index": 0}], "usageMetadata": usage} | last


def _call_part(call: Call) -> dict[str, Any]:
    return {"functionCall": {"name": call.name, "args": msgspec.json.decode(call.arguments)}}


def _chunks(answer: Answer, last: dict[str, Any], *, shown: bool) -> Iterator[dict[str, Any]]:
    if shown and answer.thought_tokens:
        text = "".join(answer.thoughts())
        yield _chunk([{"text": text, "thought": True}], None, _usage(answer, 0, answer.thought_tokens), last)
    if answer.call:
        usage = _usage(answer, answer.text_tokens, answer.thought_tokens)
        yield _chunk([_call_part(answer.call)], answer.stop, usage, last)
        return
    sent = ""
    for i, piece in enumerate(answer.pieces()):
        if i:
            # The tokens are spread over the pieces; the last chunk has them all.
            so_far = max(1, answer.text_tokens * i // answer.count)
            yield _chunk([{"text": sent}], None, _usage(answer, so_far, answer.thought_tokens), last)
        sent = piece
    usage = _usage(answer, answer.text_tokens, answer.thought_tokens)
    yield _chunk([{"text": sent}], answer.stop, usage, last)


def _sse(chunks: Iterator[dict[str, Any]]) -> Iterator[bytes]:
    return (b"data: " + dumps(chunk) + b"\r\n\r\n" for chunk in chunks)


def _array(chunks: Iterator[dict[str, Any]]) -> Iterator[bytes]:
    opening = b"["
    for chunk in chunks:
        yield opening + dumps(chunk) + b"\n"
        opening = b",\r\n"
    yield b"]"


def generate(ask: Ask, house: House) -> Reply:
    """`POST /{v}/models/{model}:generateContent` and `:streamGenerateContent`."""
    streamed = ask.found["verb"] == "streamGenerateContent"
    if streamed and ask.query.get("alt") != "sse":
        ask.dialect = GEMINI_ARRAY
    body = ask.json()
    model = ask.model(ask.found["model"])
    answer = answer_to(_question(body, model), ask.wishes)
    thinking = _get(_get(body, "generationConfig"), "thinkingConfig")
    shown = _get(thinking, "includeThoughts") is True
    last = {"modelVersion": model, "responseId": new_id("", 23)}
    if streamed:
        chunks = _chunks(answer, last, shown=shown)
        if ask.dialect is GEMINI_ARRAY:
            return Reply(events=_array(chunks), content_type=JSON)
        return Reply(events=_sse(chunks), content_type=b"text/event-stream")
    ask.must_fit()
    parts: list[dict[str, Any]] = [_call_part(answer.call)] if answer.call else [{"text": answer.text()}]
    if shown and answer.thought_tokens:
        parts.insert(0, {"text": "".join(answer.thoughts()), "thought": True})
    usage = _usage(answer, answer.text_tokens, answer.thought_tokens)
    return Reply(body=dumps(_chunk(parts, answer.stop, usage, last)), content_type=JSON)


def count_tokens(ask: Ask, house: House) -> Reply:
    """`POST /{v}/models/{model}:countTokens`: the same count that `generate` gives."""
    body = ask.json()
    model = ask.model(ask.found["model"])
    total = _question(_get(body, "generateContentRequest") or body, model).prompt_tokens
    details = [{"modality": "TEXT", "tokenCount": total}]
    return Reply(body=dumps({"totalTokens": total, "promptTokensDetails": details}), content_type=JSON)


def _embedding(body: Mapping[str, Any]) -> dict[str, Any]:
    size = _get(body, "outputDimensionality") or _get(_get(body, "embedContentConfig"), "outputDimensionality")
    size = 768 if size is None else size
    if not isinstance(size, int) or not 1 <= size <= 3072:
        raise Refusal(400, "outputDimensionality must be from 1 to 3072")
    return {"values": vector(_text(body.get("content")), size)}


def embed(ask: Ask, house: House) -> Reply:
    """`POST /{v}/models/{model}:embedContent` and `:batchEmbedContents`."""
    body = ask.json()
    ask.model(ask.found["model"])
    if ask.found["verb"] == "embedContent":
        return Reply(body=dumps({"embedding": _embedding(body)}), content_type=JSON)
    requests = [one for one in body.get("requests") or [] if isinstance(one, Mapping)]
    return Reply(body=dumps({"embeddings": [_embedding(one) for one in requests]}), content_type=JSON)


def _model(model: catalog.Model) -> dict[str, Any]:
    embeds = "embedding" in model.name
    return {
        "name": f"models/{model.name}",
        "version": "001",
        "displayName": model.title or model.name,
        "description": f"Simulated {model.title or model.name}",
        "inputTokenLimit": model.input_limit,
        "outputTokenLimit": model.output_limit,
        "supportedGenerationMethods": ["embedContent"] if embeds else ["generateContent", "countTokens"],
    }


def models(ask: Ask, house: House) -> Reply:
    """`GET /{v}/models`."""
    return Reply(body=dumps({"models": [_model(model) for model in catalog.GEMINI]}), content_type=JSON)


def model(ask: Ask, house: House) -> Reply:
    """`GET /{v}/models/{model}`."""
    name = ask.model(ask.found["model"])
    known = {model.name: model for model in catalog.GEMINI}
    return Reply(body=dumps(_model(known.get(name, catalog.Model(name=name)))), content_type=JSON)
