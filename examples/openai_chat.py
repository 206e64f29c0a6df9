"""OpenAI's SDK through the proxy. Needs: pip install openai"""

import os

from openai import OpenAI

client = OpenAI(
    base_url=os.environ.get("LLMPROXY_URL", "http://localhost:9002") + "/openai/v1",
    api_key=os.environ.get("OPENAI_API_KEY", "demo"),
)

stream = client.chat.completions.create(
    model="gpt-4o",
    messages=[{"role": "user", "content": "Hello!"}],
    stream=True,
    stream_options={"include_usage": True},
)
for chunk in stream:
    if chunk.choices:
        print(chunk.choices[0].delta.content or "", end="", flush=True)
    if chunk.usage:
        print(f"\n({chunk.usage.total_tokens} tokens)")
