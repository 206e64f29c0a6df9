// Google's Node SDK.

import assert from 'node:assert/strict';
import { after, describe, test } from 'node:test';

import { ApiError, GoogleGenAI } from '@google/genai';

import { KEY, PROXY, aborts, assertAborted, assertAllPassedTheProxy, collect, seen } from './stack.mjs';

const client = (path = '/gemini', apiKey = KEY) => new GoogleGenAI({ apiKey, httpOptions: { baseUrl: PROXY + path } });
const MODEL = 'gemini-2.5-flash';
const call = (wishes, config) => ({ model: wishes ? `${MODEL}+${wishes}` : MODEL, contents: 'Say hello.', config });
const WEATHER = {
  model: MODEL,
  contents: 'How is the weather in Paris?',
  config: {
    tools: [
      {
        functionDeclarations: [
          { name: 'get_weather', parameters: { type: 'OBJECT', properties: { city: { type: 'STRING' } } } },
        ],
      },
    ],
  },
};

after(assertAllPassedTheProxy);

for (const path of ['/gemini', '/meta/alice/gemini']) {
  test(`a plain call and a stream at ${path} say and count the same`, async () => {
    const whole = await client(path).models.generateContent(call());
    assert.ok(whole.text.length > 20);
    assert.match((await seen())[0].target, /^\/v1(beta)?\/models\/gemini-2\.5-flash:generateContent$/);
    const chunks = await collect(await client(path).models.generateContentStream(call()));
    assert.ok(chunks.length > 2);
    assert.equal(chunks.map((chunk) => chunk.text ?? '').join(''), whole.text);
    assert.equal(chunks.at(-1).usageMetadata.totalTokenCount, whole.usageMetadata.totalTokenCount);
  });

  test(`a file's start and bytes pass the proxy at ${path}`, async () => {
    const content = new Blob([Buffer.alloc(9 * 1024 * 1024, 'abc\n')], { type: 'application/octet-stream' });
    const made = await client(path).files.upload({ file: content });
    assert.equal(Number(made.sizeBytes), content.size);
    const [start, ...parts] = await seen(3);
    assert.equal(parts.reduce((sum, part) => sum + part.body_bytes, 0), content.size);
    for (const request of [start, ...parts]) {
      assert.match(request.target, /^\/upload\//);
      assert.equal(request.values('via').length, 1);
    }
    assert.equal((await client(path).files.get({ name: made.name })).state, 'ACTIVE');
  });
}

test('a tool call is the same, whole and streamed', async () => {
  const [whole] = (await client().models.generateContent(WEATHER)).functionCalls;
  assert.equal(whole.name, 'get_weather');
  const chunks = await collect(await client().models.generateContentStream(WEATHER));
  const [streamed] = chunks.flatMap((chunk) => chunk.functionCalls ?? []);
  assert.deepEqual([streamed.name, streamed.args], [whole.name, whole.args]);
});

test('a compressed answer is read, whole and streamed', async () => {
  const whole = await client().models.generateContent(call('encoding=gzip'));
  const chunks = await collect(await client().models.generateContentStream(call('encoding=gzip')));
  assert.equal(chunks.map((chunk) => chunk.text ?? '').join(''), whole.text);
});

test('counts, embeddings and models', async () => {
  const counted = await client().models.countTokens(call());
  assert.equal(counted.totalTokens, (await client().models.generateContent(call())).usageMetadata.promptTokenCount);
  const made = await client().models.embedContent({ model: 'gemini-embedding-001', contents: ['one', 'two'] });
  assert.deepEqual(made.embeddings.map((each) => each.values.length), [768, 768]);
  assert.ok((await collect(await client().models.list())).some((model) => model.name === `models/${MODEL}`));
});

describe('errors', () => {
  const calls = {
    whole: (at, given) => at.models.generateContent(given),
    streamed: async (at, given) => collect(await at.models.generateContentStream(given)),
  };
  for (const [kind, ask] of Object.entries(calls)) {
    for (const status of [400, 429, 500, 503]) {
      test(`the provider's ${status}, ${kind}`, async () => {
        await assert.rejects(ask(client(), call(`status=${status}`)), { constructor: ApiError, status });
      });
    }

    test(`a key that is not accepted, ${kind}`, async () => {
      const asked = ask(client('/gemini', 'AIza-invalid'), call());
      await assert.rejects(asked, { constructor: ApiError, status: 400, message: /API_KEY_INVALID/ });
    });

    test(`a model that there is not, ${kind}`, async () => {
      const asked = ask(client(), { ...call(), model: 'missing-model' });
      await assert.rejects(asked, { constructor: ApiError, status: 404, message: /missing-model/ });
    });

    test(`an unknown route and a refused connection, ${kind}`, async () => {
      await assert.rejects(ask(client('/nowhere'), call()), { constructor: ApiError, status: 404, message: /\/openai/ });
      await assert.rejects(ask(client('/refused-gemini'), call()), {
        constructor: ApiError,
        status: 502,
        message: /could not be reached from the proxy/,
      });
    });
  }
});

// This SDK leaves a stream by its signal only: a `break` lets go of the reader and leaves the connection open.
test('an abort in mid-stream ends the work of the provider', async () => {
  const before = await aborts();
  const controller = new AbortController();
  const stream = await client().models.generateContentStream(call('events=5000', { abortSignal: controller.signal }));
  await assert.rejects(async () => {
    let count = 0;
    for await (const _ of stream) {
      if (++count === 3) controller.abort();
    }
  });
  await assertAborted(before);
});

test('an abort before the head ends the work of the provider', async () => {
  const before = await aborts();
  const controller = new AbortController();
  const asked = client().models.generateContent(call('delay=30', { abortSignal: controller.signal }));
  setTimeout(() => controller.abort(), 300);
  await assert.rejects(asked);
  await assertAborted(before);
});

for (const fault of ['cut', 'reset']) {
  test(`a stream that the provider breaks off raises (${fault})`, async () => {
    await assert.rejects(async () => collect(await client().models.generateContentStream(call(`events=50+${fault}=3000`))));
  });
}
