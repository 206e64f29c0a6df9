"""Groq. The API lives below /openai/v1.

Groq's SDKs add `/openai/v1` to their base URL, so they ask for `/groq/openai/v1/...`. The OpenAI SDK is
pointed at `/groq/v1` and asks for `/groq/v1/...`, which has to become `/openai/v1/...` upstream.
"""

from llmproxy.providers.provider import Provider

GROQ = Provider(
    name="groq",
    title="Groq",
    kind="openai-compatible",
    base_url="https://api.groq.com",
    sdk_path="/groq",
    rewrites=((b"/v1/", b"/openai/v1/"),),
    user_path=("user",),
    usage_in_streams=True,
    health={"status": "healthy", "streaming_support": True, "body_parsing": True},
)
