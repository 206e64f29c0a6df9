"""Gemini's resumable upload and its files.

The protocol: https://ai.google.dev/gemini-api/docs/files and, for its commands, Google's resumable uploads
(`X-Goog-Upload-Protocol: resumable`). `start` answers an absolute URL, made from the Host that was asked;
`upload`, `finalize`, `query` and `cancel` go there, without a key. The rule kept here: every answer of an
upload says `X-Goog-Upload-Status`, without which the SDKs ask again.
"""

import base64
import hashlib
from dataclasses import dataclass, field
from typing import Any

from llmproxy.simulate.answer import dumps
from llmproxy.simulate.ask import LARGEST_BODY_BYTES, Ask, Fields, House, Refusal, Reply, new_id
from llmproxy.simulate.dialects import rfc3339
from llmproxy.simulate.gemini import JSON


@dataclass(slots=True, kw_only=True)
class Upload:
    """An upload under way: what was announced, and what has come so far."""

    version: str
    described: dict[str, Any]
    mime_type: str
    expected_bytes: int | None
    size_bytes: int = 0
    pieces: list[bytes] = field(default_factory=list)
    status: bytes = b"active"


def start(ask: Ask, house: House) -> Reply:
    """`POST /upload/{v}/files`: begin an upload, or go on with one (`upload_id` in the query)."""
    if "upload_id" in ask.query:
        return go_on(ask, house)
    ask.dialect.check_key(ask)
    command = ask.field(b"x-goog-upload-command").lower()
    if ask.field(b"x-goog-upload-protocol").lower() != "resumable" or command != "start":
        raise Refusal(400, "Only resumable uploads are simulated: X-Goog-Upload-Protocol: resumable, command start.")
    described = ask.json().get("file") if ask.body else {}
    announced = ask.field(b"x-goog-upload-header-content-length")
    mime_type = ask.field(b"x-goog-upload-header-content-type") or "application/octet-stream"
    upload_id = new_id("", 40)
    house.uploads[upload_id] = Upload(
        version=ask.found["v"],
        described=described if isinstance(described, dict) else {},
        mime_type=mime_type,
        expected_bytes=int(announced) if announced.isdigit() else None,
    )
    url = f"{ask.origin}/upload/{ask.found['v']}/files?upload_id={upload_id}&upload_protocol=resumable".encode(
        "latin-1"
    )
    fields: Fields = [
        (b"X-Goog-Upload-URL", url),
        (b"X-Goog-Upload-Control-URL", url),
        (b"X-Goog-Upload-Chunk-Granularity", b"262144"),
        (b"X-Goog-Upload-Status", b"active"),
        (b"X-GUploader-UploadID", upload_id.encode()),
    ]
    return Reply(content_type=b"text/plain; charset=utf-8", fields=fields)


def go_on(ask: Ask, house: House) -> Reply:
    """The commands of an upload under way. No key: the SDKs send none here."""
    upload: Upload | None = house.uploads.get(ask.query["upload_id"])
    if upload is None:
        raise Refusal(404, "The upload was not found, or has ended.")
    commands = {command.strip() for command in ask.field(b"x-goog-upload-command").lower().split(",")}
    if "cancel" in commands:
        del house.uploads[ask.query["upload_id"]]
        return _state(upload, b"cancelled")
    if "query" in commands:
        return _state(upload, upload.status)
    if not commands & {"upload", "finalize"}:
        raise Refusal(400, "X-Goog-Upload-Command must be upload, finalize, query or cancel.")
    if "upload" in commands:
        offset = ask.field(b"x-goog-upload-offset")
        if not offset.isdigit() or int(offset) != upload.size_bytes:
            raise Refusal(400, f"X-Goog-Upload-Offset must be {upload.size_bytes}.")
        if sum(map(len, upload.pieces)) + len(ask.body) <= LARGEST_BODY_BYTES:
            upload.pieces.append(ask.body)
        upload.size_bytes += ask.body_bytes
    if "finalize" not in commands:
        return _state(upload, b"active")
    if upload.expected_bytes not in (None, upload.size_bytes):
        raise Refusal(400, f"{upload.expected_bytes} bytes were announced, {upload.size_bytes} came.")
    del house.uploads[ask.query["upload_id"]]
    shown = _file(ask, house, upload)
    reply = _state(upload, b"final")
    reply.body, reply.content_type = dumps({"file": shown}), JSON
    return reply


def _state(upload: Upload, status: bytes) -> Reply:
    fields: Fields = [
        (b"X-Goog-Upload-Status", status),
        (b"X-Goog-Upload-Size-Received", b"%d" % upload.size_bytes),
    ]
    return Reply(content_type=b"text/plain; charset=utf-8", fields=fields)


def _file(ask: Ask, house: House, upload: Upload) -> dict[str, Any]:
    asked = upload.described.get("name")
    name = asked if isinstance(asked, str) and asked.startswith("files/") else "files/" + new_id("", 12)
    content = b"".join(upload.pieces)
    digest = hashlib.sha256(content).hexdigest().encode()
    shown: dict[str, Any] = {"name": name}
    if isinstance(upload.described.get("displayName"), str):
        shown["displayName"] = upload.described["displayName"]
    shown |= {
        "mimeType": upload.described.get("mimeType") or upload.mime_type,
        "sizeBytes": str(upload.size_bytes),
        "createTime": rfc3339(ask.now_s),
        "updateTime": rfc3339(ask.now_s),
        "expirationTime": rfc3339(ask.now_s + 48 * 3600),
        "sha256Hash": base64.b64encode(digest).decode(),
        "uri": f"{ask.origin}/{upload.version}/{name}",
        "state": "ACTIVE",
        "source": "UPLOADED",
    }
    house.gemini_files[name] = (shown, content)
    return shown


def _known(ask: Ask, house: House) -> tuple[dict[str, Any], bytes]:
    found: tuple[dict[str, Any], bytes] | None = house.gemini_files.get("files/" + ask.found["id"])
    if found is None:
        raise Refusal(403, "You do not have permission to access the File " + ask.found["id"] + " or it may not exist.")
    return found


def files(ask: Ask, house: House) -> Reply:
    """`GET /{v}/files`."""
    listed = [shown for shown, _ in house.gemini_files.values()]
    return Reply(body=dumps({"files": listed} if listed else {}), content_type=JSON)


def file(ask: Ask, house: House) -> Reply:
    """`GET /{v}/files/{id}`."""
    return Reply(body=dumps(_known(ask, house)[0]), content_type=JSON)


def download(ask: Ask, house: House) -> Reply:
    """`GET /{v}/files/{id}:download?alt=media`."""
    shown, content = _known(ask, house)
    return Reply(body=content, content_type=shown["mimeType"].encode("latin-1", "replace"))


def delete(ask: Ask, house: House) -> Reply:
    """`DELETE /{v}/files/{id}`."""
    _known(ask, house)
    del house.gemini_files["files/" + ask.found["id"]]
    return Reply(body=b"{}", content_type=JSON)
