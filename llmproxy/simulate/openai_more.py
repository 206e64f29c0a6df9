"""OpenAI's smaller endpoints: embeddings, models, files, speech, moderations. Groq's are the same.

Shapes: https://platform.openai.com/docs/api-reference/{embeddings,models,files,audio,moderations}.
"""

import base64
import hashlib
import struct
from collections.abc import Iterator
from typing import Any, Final

from llmproxy.simulate import catalog, openai_chat
from llmproxy.simulate.answer import dumps, seed_of, tokens_of
from llmproxy.simulate.ask import Ask, House, Refusal, Reply, new_id
from llmproxy.simulate.multipart import file_of
from llmproxy.simulate.served import Served

_DIMENSIONS: Final = {"text-embedding-3-large": 3072}
_SPEECH_PIECE_BYTES: Final = 1024


def vector(text: str, size: int) -> list[float]:
    """An embedding: numbers from -1 to 1 that depend on the text alone."""
    seed = seed_of(text)
    return [((seed + i * 7919) * 31 % 2001 - 1000) / 1000 for i in range(size)]


def embeddings(ask: Ask, house: House) -> Reply:
    """`POST embeddings`, in floats or, as the SDK asks, in base64 of little-endian 32-bit floats."""
    body = ask.json()
    model = ask.model(body.get("model"))
    given = body.get("input")
    if given is None:
        raise Refusal(400, "Missing required parameter: 'input'.", param="input")
    # A text, a list of texts, a list of token numbers, or a list of such lists.
    one = isinstance(given, str) or (isinstance(given, list) and bool(given) and isinstance(given[0], int))
    inputs: list[Any] = [given] if one or not isinstance(given, list) else given
    size = body.get("dimensions") or _DIMENSIONS.get(model, 1536)
    if not isinstance(size, int) or not 1 <= size <= 3072:
        raise Refusal(400, "'dimensions' must be a whole number from 1 to 3072.", param="dimensions")
    tokens = sum(len(item) if isinstance(item, list) else tokens_of(str(item)) for item in inputs)
    data = []
    for index, item in enumerate(inputs):
        numbers = vector(str(item), size)
        coded: object = numbers
        if body.get("encoding_format") == "base64":
            coded = base64.b64encode(struct.pack(f"<{size}f", *numbers)).decode()
        data.append({"object": "embedding", "index": index, "embedding": coded})
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    name = catalog.dated(catalog.OPENAI, model)
    told = not ask.wishes.without_usage
    listed = {"object": "list", "data": data, "model": name} | ({"usage": usage} if told else {})
    served = Served(provider=ask.provider, model=name, input_tokens=tokens, told=told)
    return Reply(body=dumps(listed), served=served)


def _model(ask: Ask, model: catalog.Model) -> dict[str, Any]:
    shown: dict[str, Any] = {"id": model.name, "object": "model", "created": 1_715_367_049}
    if ask.dialect.name == "groq":
        limits = {"context_window": model.input_limit, "max_completion_tokens": model.output_limit}
        return shown | {"owned_by": model.title or "Meta", "active": True, "public_apps": None} | limits
    return shown | {"owned_by": "system"}


def models(ask: Ask, house: House) -> Reply:
    """`GET models`."""
    listed = openai_chat.models_of(ask)
    return Reply(body=dumps({"object": "list", "data": [_model(ask, model) for model in listed]}))


def model(ask: Ask, house: House) -> Reply:
    """`GET models/{model}`."""
    name = ask.model(ask.found["model"])
    known = {model.name: model for model in catalog.OPENAI + catalog.GROQ}
    return Reply(body=dumps(_model(ask, known.get(name, catalog.Model(name=name)))))


def upload(ask: Ask, house: House) -> Reply:
    """`POST files`, multipart."""
    sent = file_of(ask.field(b"content-type"), ask.body, ask.body_bytes)
    if sent is None:
        raise Refusal(400, "'file' is a required property", param="file")
    shown = {
        "id": new_id("file-", 22),
        "object": "file",
        "bytes": sent.size_bytes,
        "created_at": ask.created,
        "expires_at": None,
        "filename": sent.filename,
        "purpose": sent.values.get("purpose", "user_data"),
        "status": "processed",
        "status_details": None,
    }
    house.files[str(shown["id"])] = (shown, sent.content)
    return Reply(body=dumps(shown))


def files(ask: Ask, house: House) -> Reply:
    """`GET files`."""
    listed = [shown for shown, _ in house.files.values()]
    if "purpose" in ask.query:
        listed = [shown for shown in listed if shown["purpose"] == ask.query["purpose"]]
    ends = {"first_id": listed[0]["id"], "last_id": listed[-1]["id"]} if listed else {}
    return Reply(body=dumps({"object": "list", "data": listed, "has_more": False} | ends))


def _known(ask: Ask, house: House) -> tuple[dict[str, Any], bytes]:
    found: tuple[dict[str, Any], bytes] | None = house.files.get(ask.found["id"])
    if found is None:
        raise Refusal(404, f"No such File object: {ask.found['id']}", param="id")
    return found


def file(ask: Ask, house: House) -> Reply:
    """`GET files/{id}`."""
    return Reply(body=dumps(_known(ask, house)[0]))


def content(ask: Ask, house: House) -> Reply:
    """`GET files/{id}/content`: the bytes as they came."""
    shown, kept = _known(ask, house)
    name = f'attachment; filename="{shown["filename"]}"'.encode("utf-8", "replace")
    safe = bytes(byte for byte in name if byte >= 0x20 and byte != 0x7F)
    return Reply(body=kept, content_type=b"application/octet-stream", fields=[(b"content-disposition", safe)])


def delete_file(ask: Ask, house: House) -> Reply:
    """`DELETE files/{id}`."""
    _known(ask, house)
    del house.files[ask.found["id"]]
    return Reply(body=dumps({"id": ask.found["id"], "object": "file", "deleted": True}))


def speech(ask: Ask, house: House) -> Reply:
    """`POST audio/speech`: binary, chunked, of `bytes` bytes (16 KiB unless asked)."""
    body = ask.json()
    model = ask.model(body.get("model"))
    size = 16_384 if ask.wishes.text_bytes is None else ask.wishes.text_bytes
    block = hashlib.sha256(str(body.get("input")).encode("utf-8", "replace")).digest() * (_SPEECH_PIECE_BYTES // 32)

    def pieces() -> Iterator[bytes]:
        for at in range(0, size, _SPEECH_PIECE_BYTES):
            yield block[: min(_SPEECH_PIECE_BYTES, size - at)]

    # Billed by the characters of the text; the answer does not say what that was.
    served = Served(provider=ask.provider, model=model, input_tokens=tokens_of(str(body.get("input"))))
    return Reply(events=pieces(), content_type=b"audio/mpeg", served=served)


def moderations(ask: Ask, house: House) -> Reply:
    """`POST moderations`: nothing is ever flagged."""
    body = ask.json()
    given = body.get("input")
    names = ("harassment", "hate", "illicit", "self-harm", "sexual", "violence")
    result = {
        "flagged": False,
        "categories": dict.fromkeys(names, False),
        "category_scores": dict.fromkeys(names, 0.0001),
        "category_applied_input_types": {name: ["text"] for name in names},
    }
    model = ask.model(body.get("model", "omni-moderation-latest"))
    results = [result] * (len(given) if isinstance(given, list) else 1)
    return Reply(body=dumps({"id": new_id("modr-", 29), "model": model, "results": results}))
