// Google's SDK through the proxy. Needs: npm install @google/genai
import { GoogleGenAI } from "@google/genai";

const client = new GoogleGenAI({
  apiKey: process.env.GEMINI_API_KEY ?? "demo",
  httpOptions: { baseUrl: (process.env.LLMPROXY_URL ?? "http://localhost:9002") + "/gemini" },
});

let tokens;
const stream = await client.models.generateContentStream({ model: "gemini-2.5-flash", contents: "Hello!" });
for await (const chunk of stream) {
  process.stdout.write(chunk.text ?? "");
  tokens = chunk.usageMetadata?.totalTokenCount ?? tokens;
}
console.log(`\n(${tokens} tokens)`);
