"""Gemini's generateContent and its like: whole, as SSE, and as one JSON array in pieces.

Shapes: https://ai.google.dev/api/generate-content. The rules kept here: lines end with CRLF; there is no
`[DONE]`; `usageMetadata` is in every chunk and cumulative; `candidatesTokenCount` leaves out the thoughts, and
`promptTokenCount` what the provider's own tools brought in.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

import msgspec

from llmproxy.simulate import catalog
from llmproxy.simulate.answer import Answer, Call, Question, Tool, answer_to, dumps, tokens_of
from llmproxy.simulate.ask import Ask, House, Refusal, Reply, new_id
from llmproxy.simulate.dialects import GEMINI_ARRAY
from llmproxy.simulate.openai_chat import whole_number
from llmproxy.simulate.openai_more import vector
from llmproxy.simulate.served import Served

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


def modalities(answer: Answer) -> list[tuple[str, int]]:
    """The prompt's tokens by modality; text is always among them."""
    text = answer.prompt_tokens - answer.audio_tokens - answer.image_tokens
    others = [("AUDIO", answer.audio_tokens), ("IMAGE", answer.image_tokens)]
    return [("TEXT", text)] + [(name, tokens) for name, tokens in others if tokens]


def served_of(answer: Answer, model: str, response_id: str, tool_use_tokens: int, *, told: bool) -> Served:
    """What an answer uses."""
    return Served(
        provider="gemini",
        model=model,
        response_id=response_id,
        input_tokens=answer.prompt_tokens + tool_use_tokens,
        output_tokens=answer.output_tokens,
        cache_read_tokens=answer.cached_tokens,
        reasoning_tokens=answer.thought_tokens,
        told=told,
    )


def _usage(answer: Answer, tool_use: int, candidates: int, thoughts: int) -> dict[str, Any]:
    usage: dict[str, Any] = {"promptTokenCount": answer.prompt_tokens}
    if candidates:
        usage["candidatesTokenCount"] = candidates
    usage["totalTokenCount"] = answer.prompt_tokens + tool_use + candidates + thoughts
    if answer.cached_tokens:
        usage["cachedContentTokenCount"] = answer.cached_tokens
        usage["cacheTokensDetails"] = [{"modality": "TEXT", "tokenCount": answer.cached_tokens}]
    usage["promptTokensDetails"] = [{"modality": name, "tokenCount": count} for name, count in modalities(answer)]
    if tool_use:
        usage["toolUsePromptTokenCount"] = tool_use
        usage["toolUsePromptTokensDetails"] = [{"modality": "TEXT", "tokenCount": tool_use}]
    if thoughts:
        usage["thoughtsTokenCount"] = thoughts
    return usage


def _chunk(
    parts: list[dict[str, Any]], stop: str | None, usage: dict[str, Any] | None, last: dict[str, Any]
) -> dict[str, Any]:
    candidate: dict[str, Any] = {"content": {"parts": parts, "role": "model"}}
    if stop is not None:
        candidate["finishReason"] = "MAX_TOKENS" if stop == "length" else "STOP"
    counted = {} if usage is None else {"usageMetadata": usage}
    return {"candidates": [candidate | {"index": 0}]} | counted | last


def _call_part(call: Call) -> dict[str, Any]:
    return {"functionCall": {"name": call.name, "args": msgspec.json.decode(call.arguments)}}


def _chunks(ask: Ask, answer: Answer, served: Served, last: dict[str, Any], *, shown: bool) -> Iterator[dict[str, Any]]:
    thoughts, made = answer.thought_tokens, 0

    def chunk(part: dict[str, Any], text_tokens: int, stop: str | None = None) -> dict[str, Any]:
        """The next chunk; `text_tokens`: up to and with it. Its counters tell of the thoughts, shown or not."""
        nonlocal made
        served.made(thoughts + text_tokens - made)
        made = thoughts + text_tokens
        if ask.wishes.without_usage:
            return _chunk([part], stop, None, last)
        if stop is not None:
            served.told()
        return _chunk([part], stop, _usage(answer, ask.wishes.tool_use_tokens, text_tokens, thoughts), last)

    if shown and thoughts:
        yield chunk({"text": "".join(answer.thoughts()), "thought": True}, 0)
    if answer.call:
        yield chunk(_call_part(answer.call), answer.text_tokens, answer.stop)
        return
    # The tokens are spread over the pieces. The last piece has all of them, and so has to be known as the last.
    sent, so_far = "", 0
    for i, (piece, tokens) in enumerate(answer.counted_pieces()):
        if i:
            yield chunk({"text": sent}, so_far)
        sent, so_far = piece, so_far + tokens
    yield chunk({"text": sent}, answer.text_tokens, answer.stop)


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
    tool_use, without_usage = ask.wishes.tool_use_tokens, ask.wishes.without_usage
    told = not streamed and not without_usage
    served = served_of(answer, model, last["responseId"], tool_use, told=told)
    if streamed:
        chunks = _chunks(ask, answer, served, last, shown=shown)
        if ask.dialect is GEMINI_ARRAY:
            return Reply(events=_array(chunks), content_type=JSON, served=served)
        return Reply(events=_sse(chunks), content_type=b"text/event-stream", served=served)
    ask.must_fit()
    parts: list[dict[str, Any]] = [_call_part(answer.call)] if answer.call else [{"text": answer.text()}]
    if shown and answer.thought_tokens:
        parts.insert(0, {"text": "".join(answer.thoughts()), "thought": True})
    usage = None if without_usage else _usage(answer, tool_use, answer.text_tokens, answer.thought_tokens)
    return Reply(body=dumps(_chunk(parts, answer.stop, usage, last)), content_type=JSON, served=served)


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
    model = ask.model(ask.found["model"])
    single = ask.found["verb"] == "embedContent"
    requests = [body] if single else [one for one in body.get("requests") or [] if isinstance(one, Mapping)]
    made = [_embedding(one) for one in requests]
    shown: dict[str, Any] = {"embedding": made[0]} if single else {"embeddings": made}
    # No answer of these says what it cost.
    tokens = sum(tokens_of(_text(one.get("content"))) for one in requests)
    served = Served(provider="gemini", model=model, input_tokens=tokens)
    return Reply(body=dumps(shown), content_type=JSON, served=served)


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
