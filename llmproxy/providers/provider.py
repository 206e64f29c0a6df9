"""What the proxy knows about one provider. Data more than code; paths stay bytes and are never decoded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit


@dataclass(frozen=True, slots=True, kw_only=True)
class Provider:
    """One provider.

    name: the first path segment behind the proxy's origin, as in `/openai/v1/models`.
    title: the name for sentences ("OpenAI").
    kind: "openai-compatible", "anthropic" or "gemini": whose wire shapes it speaks.
    base_url: where it lives: scheme, host, optional port, optional path prefix; no trailing slash.
    sdk_path: what the provider's own SDK gets as base URL, behind the proxy's origin.
    rewrites: path prefixes after the provider's segment that change, each (from, to); the first that fits
        counts.
    user_path: the keys that lead to the user's id in a JSON request body; () where the API has no such field.
    usage_in_streams: whether its OpenAI-shaped streams carry their usage without being asked for it.
    path_prefix: the path of the base URL, without a slash at its end; usually empty.
    health: this provider's own facts in /health; see `health_report` for the whole entry.
    """

    name: str
    title: str
    kind: str
    base_url: str
    sdk_path: str
    rewrites: tuple[tuple[bytes, bytes], ...] = ()
    user_path: tuple[str, ...] = ()
    usage_in_streams: bool = False
    health: Mapping[str, object] = field(hash=False)
    path_prefix: bytes = field(init=False)

    def __post_init__(self) -> None:
        """Work out the path of the base URL, once and not for each request."""
        object.__setattr__(self, "path_prefix", urlsplit(self.base_url).path.rstrip("/").encode("ascii"))

    def upstream_target(self, rest: bytes) -> bytes:
        """The request-target to send upstream.

        rest: the caller's target after `/<name>`, query included, as it came on the wire. It is not decoded:
        `%2F` and `:` in model ids would come out otherwise, and the provider would not find the model.
        """
        if not rest.startswith(b"/"):
            # `/openai` and `/openai?x=1`: RFC 9112 section 3.2.1, an origin-form target starts with a slash.
            rest = b"/" + rest
        for old, new in self.rewrites:
            if rest.startswith(old):
                rest = new + rest[len(old) :]
                break
        return self.path_prefix + rest

    def health_report(self) -> dict[str, object]:
        """This provider's entry in /health. Nothing is probed: it says what is configured."""
        return {"provider": self.name, "baseURL": self.base_url, **self.health}
