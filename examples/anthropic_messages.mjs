// Anthropic's SDK through the proxy. Needs: npm install @anthropic-ai/sdk
import Anthropic from "@anthropic-ai/sdk";

const client = new Anthropic({
  baseURL: (process.env.LLMPROXY_URL ?? "http://localhost:9002") + "/anthropic",
  apiKey: process.env.ANTHROPIC_API_KEY ?? "demo",
});

const stream = client.messages.stream({
  model: "claude-sonnet-4-20250514",
  max_tokens: 100,
  messages: [{ role: "user", content: "Hello!" }],
});
stream.on("text", (text) => process.stdout.write(text));
const message = await stream.finalMessage();
console.log(`\n(${message.usage.output_tokens} tokens)`);
