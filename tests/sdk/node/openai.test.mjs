// OpenAI's Node SDK: at OpenAI's base URL, and at those of Groq and Gemini.

import assert from 'node:assert/strict';
import { after, describe, test } from 'node:test';

import OpenAI, { toFile } from 'openai';

import { KEY, PROXY, aborts, assertAborted, assertAllPassedTheProxy, collect, seen } from './stack.mjs';

const client = (path = '/openai/v1', apiKey = KEY) => new OpenAI({ baseURL: PROXY + path, apiKey, maxRetries: 0 });
const HELLO = [{ role: 'user', content: 'Say hello.' }];
const WEATHER = {
  messages: [{ role: 'user', content: 'How is the weather in Paris?' }],
  tools: [
    {
      type: 'function',
      function: { name: 'get_weather', parameters: { type: 'object', properties: { city: { type: 'string' } } } },
    },
  ],
};
const textOf = (chunks) => chunks.map((chunk) => chunk.choices[0]?.delta.content ?? '').join('');

after(assertAllPassedTheProxy);

for (const [path, model] of [
  ['/openai/v1', 'gpt-4o'],
  ['/meta/alice/openai/v1', 'gpt-4o'],
  ['/groq/v1', 'llama-3.3-70b-versatile'],
  ['/gemini/v1beta/openai/', 'gemini-2.5-flash-lite'],
]) {
  describe(`chat at ${path}`, () => {
    const create = (more) => client(path).chat.completions.create({ model, messages: HELLO, ...more });

    test('a plain call and a stream say and count the same', async () => {
      const whole = await create();
      assert.equal(whole.choices[0].finish_reason, 'stop');
      assert.ok(whole.choices[0].message.content.length > 20);
      assert.equal(whole.usage.total_tokens, whole.usage.prompt_tokens + whole.usage.completion_tokens);
      const chunks = await collect(await create({ stream: true, stream_options: { include_usage: true } }));
      assert.equal(textOf(chunks), whole.choices[0].message.content);
      assert.equal(chunks.at(-1).usage.completion_tokens, whole.usage.completion_tokens);
    });

    test('a tool call is the same, whole and streamed', async () => {
      const [call] = (await create(WEATHER)).choices[0].message.tool_calls;
      assert.equal(call.function.name, 'get_weather');
      assert.deepEqual(Object.keys(JSON.parse(call.function.arguments)), ['city']);
      const chunks = await collect(await create({ ...WEATHER, stream: true }));
      const pieces = chunks.flatMap((chunk) => chunk.choices[0]?.delta.tool_calls ?? []);
      assert.equal(pieces.map((piece) => piece.function.arguments ?? '').join(''), call.function.arguments);
    });

    test('a compressed answer is read, whole and streamed', async () => {
      const zipped = `${model}+encoding=gzip`;
      const whole = await create({ model: zipped });
      assert.equal(textOf(await collect(await create({ model: zipped, stream: true }))), whole.choices[0].message.content);
    });

    for (const [status, expected] of [
      [400, OpenAI.BadRequestError],
      [429, OpenAI.RateLimitError],
      [500, OpenAI.InternalServerError],
    ]) {
      test(`the provider's ${status} raises its class`, async () => {
        for (const stream of [false, true]) {
          const error = await create({ model: `${model}+status=${status}`, stream }).catch((raised) => raised);
          assert.ok(error instanceof expected, `${error}`);
          assert.equal(error.status, status);
          assert.equal(error.headers.get('x-llm-proxy-error-source'), null);
          if (!path.startsWith('/gemini')) {
            assert.match(error.requestID, /^req_[0-9a-f]+$/);
            assert.ok(error.error.message);
          }
        }
      });
    }

    test('leaving a stream in the middle ends the work of the provider', async () => {
      const before = await aborts();
      let count = 0;
      for await (const _ of await create({ model: `${model}+events=5000`, stream: true })) {
        if (++count === 3) break;
      }
      await assertAborted(before);
    });

    test('an abort before the head ends the work of the provider', async () => {
      const before = await aborts();
      const controller = new AbortController();
      const call = client(path).chat.completions.create(
        { model: `${model}+delay=30`, messages: HELLO },
        { signal: controller.signal },
      );
      setTimeout(() => controller.abort(), 300);
      await assert.rejects(call, OpenAI.APIUserAbortError);
      await assertAborted(before);
    });

    for (const fault of ['cut', 'reset']) {
      test(`a stream that the provider breaks off raises (${fault})`, async () => {
        await assert.rejects(async () => collect(await create({ model: `${model}+events=50+${fault}=3000`, stream: true })));
      });
    }
  });
}

describe('the rest of OpenAI', () => {
  test('responses, whole and streamed', async () => {
    const call = { model: 'gpt-4o', input: 'Say hello.' };
    const whole = await client().responses.create(call);
    assert.ok(whole.output_text.length > 20);
    const events = await collect(await client().responses.create({ ...call, stream: true }));
    assert.deepEqual(events.map((event) => event.sequence_number), [...events.keys()]);
    assert.equal(events.at(-1).type, 'response.completed');
    assert.equal(events.at(-1).response.usage.output_tokens, whole.usage.output_tokens);
  });

  test('embeddings', async () => {
    const made = await client().embeddings.create({ model: 'text-embedding-3-small', input: ['one', 'two'] });
    assert.deepEqual(made.data.map((each) => each.embedding.length), [1536, 1536]);
  });

  test('models', async () => {
    assert.ok((await collect(client().models.list())).some((model) => model.id === 'gpt-4o'));
    await assert.rejects(client().models.retrieve('missing-model'), OpenAI.NotFoundError);
  });

  test('a file goes up as multipart and comes back byte for byte', async () => {
    const content = Buffer.alloc(3 * 1024 * 1024, 'abc\n');
    const made = await client().files.create({ file: await toFile(content, 'data.bin'), purpose: 'user_data' });
    assert.equal(made.bytes, content.length);
    const back = Buffer.from(await (await client().files.content(made.id)).arrayBuffer());
    assert.ok(back.equals(content));
  });

  test('a key that the provider does not accept', async () => {
    const call = client('/openai/v1', 'sk-invalid').chat.completions.create({ model: 'gpt-4o', messages: HELLO });
    await assert.rejects(call, OpenAI.AuthenticationError);
  });

  test('a model that there is not', async () => {
    const call = client().chat.completions.create({ model: 'missing-model', messages: HELLO });
    await assert.rejects(call, { constructor: OpenAI.NotFoundError, message: /missing-model/, code: 'model_not_found' });
  });

  test('the provider sees the path that it knows', async () => {
    await client('/groq/v1').chat.completions.create({ model: 'llama-3.3-70b-versatile', messages: HELLO });
    assert.equal((await seen())[0].target, '/openai/v1/chat/completions');
  });
});

describe('what the proxy itself says', () => {
  const call = (path, stream) => client(path).chat.completions.create({ model: 'gpt-4o', messages: HELLO, stream });

  for (const stream of [false, true]) {
    test(`an unknown route, ${stream ? 'streamed' : 'whole'}`, async () => {
      await assert.rejects(call('/nowhere', stream), {
        constructor: OpenAI.NotFoundError,
        code: 'unknown_route',
        message: /\/openai/,
      });
    });

    test(`a provider that refuses connections, ${stream ? 'streamed' : 'whole'}`, async () => {
      await assert.rejects(call('/refused-openai', stream), {
        constructor: OpenAI.InternalServerError,
        status: 502,
        code: 'upstream_connect_failed',
        message: /could not be reached from the proxy/,
      });
    });
  }
});
