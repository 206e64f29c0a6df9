"""The file in a multipart/form-data body (RFC 7578), enough for what an SDK uploads.

The rule kept here: the file's bytes come out exactly as they were sent.
"""

import re
from dataclasses import dataclass, field
from email.message import Message


@dataclass(slots=True, kw_only=True)
class SentFile:
    """The file part, and the plain values beside it."""

    filename: str = ""
    content: bytes = b""
    size_bytes: int = 0
    values: dict[str, str] = field(default_factory=dict)


def _parameter(header: str, name: str) -> str | None:
    message = Message()
    message["content-disposition"] = header
    value = message.get_param(name, header="content-disposition")
    return value if isinstance(value, str) else None


def file_of(content_type: str, body: bytes, body_bytes: int) -> SentFile | None:
    """The first part that has a file name; `None` when there is none.

    `body` may be the beginning only of a body of `body_bytes`; then the content is what there is, and the
    size is reckoned from the whole.
    """
    boundary = _parameter(content_type, "boundary")
    if not boundary:
        return None
    delimiter = b"\r\n--" + boundary.encode("latin-1", "replace")
    found: SentFile | None = None
    values: dict[str, str] = {}
    parts = (b"\r\n" + body).split(delimiter)[1:]
    for at, part in enumerate(parts):
        head, blank, content = part.partition(b"\r\n\r\n")
        disposition = re.search(rb"(?im)^content-disposition:[ \t]*(.*?)\r?$", head)
        if not blank or disposition is None:
            continue
        described = disposition.group(1).decode("utf-8", "replace")
        filename = _parameter(described, "filename")
        if filename is None:
            values[_parameter(described, "name") or ""] = content.decode("utf-8", "replace")
        elif found is None:
            size = len(content)
            if at == len(parts) - 1 and body_bytes > len(body):
                size += body_bytes - len(body) - len(delimiter) - len(b"--\r\n")
            found = SentFile(filename=filename, content=content, size_bytes=size)
    if found is not None:
        found.values = values
    return found
