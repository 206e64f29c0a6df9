// OpenAI's SDK through the proxy. Needs: npm install openai
import OpenAI from "openai";

const client = new OpenAI({
  baseURL: (process.env.LLMPROXY_URL ?? "http://localhost:9002") + "/openai/v1",
  apiKey: process.env.OPENAI_API_KEY ?? "demo",
});

const stream = await client.chat.completions.create({
  model: "gpt-4o",
  messages: [{ role: "user", content: "Hello!" }],
  stream: true,
  stream_options: { include_usage: true },
});
for await (const chunk of stream) {
  process.stdout.write(chunk.choices[0]?.delta.content ?? "");
  if (chunk.usage) console.log(`\n(${chunk.usage.total_tokens} tokens)`);
}
