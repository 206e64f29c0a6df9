"""Anthropic. Its SDKs add /v1 themselves, so their base URL ends before it."""

from llmproxy.providers.provider import Provider

ANTHROPIC = Provider(
    name="anthropic",
    title="Anthropic",
    kind="anthropic",
    base_url="https://api.anthropic.com",
    sdk_path="/anthropic",
    user_path=("metadata", "user_id"),
    health={"status": "healthy", "streaming_support": True, "body_parsing": True},
)
