"""Google Gemini. v1, v1beta, v1alpha, upload and download live on one host; the SDK picks the version."""

from llmproxy.providers.provider import Provider

GEMINI = Provider(
    name="gemini",
    title="Gemini",
    kind="gemini",
    base_url="https://generativelanguage.googleapis.com",
    sdk_path="/gemini",
    health={"status": "healthy", "streaming_support": True, "body_parsing": False, "sse_support": True},
)
