"""Anthropic's SDK through the proxy. Needs: pip install anthropic"""

import os

from anthropic import Anthropic

client = Anthropic(
    base_url=os.environ.get("LLMPROXY_URL", "http://localhost:9002") + "/anthropic",
    api_key=os.environ.get("ANTHROPIC_API_KEY", "demo"),
)

with client.messages.stream(
    model="claude-sonnet-4-20250514",
    max_tokens=100,
    messages=[{"role": "user", "content": "Hello!"}],
) as stream:
    for text in stream.text_stream:
        print(text, end="", flush=True)
    print(f"\n({stream.get_final_message().usage.output_tokens} tokens)")
