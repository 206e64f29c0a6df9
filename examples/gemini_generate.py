"""Google's SDK through the proxy. Needs: pip install google-genai"""

import os

from google import genai

client = genai.Client(
    http_options={"base_url": os.environ.get("LLMPROXY_URL", "http://localhost:9002") + "/gemini"},
    api_key=os.environ.get("GEMINI_API_KEY", "demo"),
)

tokens = None
for chunk in client.models.generate_content_stream(model="gemini-2.5-flash", contents="Hello!"):
    print(chunk.text or "", end="", flush=True)
    if chunk.usage_metadata:
        tokens = chunk.usage_metadata.total_token_count
print(f"\n({tokens} tokens)")
