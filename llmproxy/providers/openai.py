"""OpenAI. SDKs ask for paths below /v1, so their base URL ends in it."""

from llmproxy.providers.provider import Provider

OPENAI = Provider(
    name="openai",
    title="OpenAI",
    kind="openai-compatible",
    base_url="https://api.openai.com",
    sdk_path="/openai/v1",
    user_path=("user",),
    health={"status": "healthy", "streaming_support": True, "body_parsing": True},
)
