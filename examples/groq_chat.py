"""Groq's SDK through the proxy. Needs: pip install groq"""

import os

from groq import Groq

client = Groq(
    base_url=os.environ.get("LLMPROXY_URL", "http://localhost:9002") + "/groq",
    api_key=os.environ.get("GROQ_API_KEY", "demo"),
)

stream = client.chat.completions.create(
    model="llama-3.3-70b-versatile",
    messages=[{"role": "user", "content": "Hello!"}],
    stream=True,
)
for chunk in stream:
    if chunk.choices:
        print(chunk.choices[0].delta.content or "", end="", flush=True)
    if chunk.x_groq and chunk.x_groq.usage:
        print(f"\n({chunk.x_groq.usage.total_tokens} tokens)")
