// Anthropic's Node SDK.

import assert from 'node:assert/strict';
import { after, describe, test } from 'node:test';

import Anthropic from '@anthropic-ai/sdk';

import { KEY, PROXY, aborts, assertAborted, assertAllPassedTheProxy, collect, seen } from './stack.mjs';

const client = (path = '/anthropic', apiKey = KEY) => new Anthropic({ baseURL: PROXY + path, apiKey, maxRetries: 0 });
const MODEL = 'claude-sonnet-5-5';
const CALL = { model: MODEL, max_tokens: 1024, messages: [{ role: 'user', content: 'Say hello.' }] };
const WEATHER = {
  ...CALL,
  messages: [{ role: 'user', content: 'How is the weather in Paris?' }],
  tools: [{ name: 'get_weather', input_schema: { type: 'object', properties: { city: { type: 'string' } } } }],
};
const wishing = (wishes, more) => ({ ...CALL, model: `${MODEL}+${wishes}`, ...more });

after(assertAllPassedTheProxy);

for (const path of ['/anthropic', '/meta/alice/anthropic']) {
  test(`a plain call and a stream at ${path} say and count the same`, async () => {
    const whole = await client(path).messages.create(CALL);
    assert.equal(whole.stop_reason, 'end_turn');
    assert.ok(whole.usage.input_tokens > 0);
    assert.equal((await seen())[0].target, '/v1/messages');
    const events = await collect(await client(path).messages.create({ ...CALL, stream: true }));
    assert.equal(events[0].type, 'message_start');
    assert.equal(events.at(-1).type, 'message_stop');
    assert.equal(events.map((event) => event.delta?.text ?? '').join(''), whole.content[0].text);
    assert.equal(events.at(-2).usage.output_tokens, whole.usage.output_tokens);
  });
}

test('messages.stream puts the same message together', async () => {
  const whole = await client().messages.create(CALL);
  const final = await client().messages.stream(CALL).finalMessage();
  assert.equal(final.content[0].text, whole.content[0].text);
});

test('a tool call is the same, whole and streamed', async () => {
  const [block] = (await client().messages.create(WEATHER)).content;
  assert.equal(block.name, 'get_weather');
  const [streamed] = (await client().messages.stream(WEATHER).finalMessage()).content;
  assert.deepEqual([streamed.name, streamed.input], [block.name, block.input]);
});

test('a compressed answer is read, whole and streamed', async () => {
  const whole = await client().messages.create(wishing('encoding=gzip'));
  const final = await client().messages.stream(wishing('encoding=gzip')).finalMessage();
  assert.equal(final.content[0].text, whole.content[0].text);
});

test('count_tokens and models', async () => {
  const counted = await client().messages.countTokens({ model: MODEL, messages: CALL.messages });
  assert.equal(counted.input_tokens, (await client().messages.create(CALL)).usage.input_tokens);
  assert.ok((await collect(client().models.list())).some((model) => model.id === MODEL));
});

describe('errors of the provider', () => {
  for (const [status, expected] of [
    [400, Anthropic.BadRequestError],
    [429, Anthropic.RateLimitError],
    [500, Anthropic.InternalServerError],
    [529, Anthropic.OverloadedError ?? Anthropic.InternalServerError],
  ]) {
    test(`${status} raises its class with the request id`, async () => {
      for (const stream of [false, true]) {
        const error = await client().messages.create(wishing(`status=${status}`, { stream })).catch((raised) => raised);
        assert.ok(error instanceof expected, `${error}`);
        assert.equal(error.status, status);
        assert.equal(error.requestID, error.error.request_id);
        assert.equal(error.headers.get('x-llm-proxy-error-source'), null);
      }
    });
  }

  test('a key that is not accepted, and a model that there is not', async () => {
    await assert.rejects(client('/anthropic', 'sk-ant-invalid').messages.create(CALL), Anthropic.AuthenticationError);
    await assert.rejects(client().messages.create({ ...CALL, model: 'missing-model' }), {
      constructor: Anthropic.NotFoundError,
      message: /missing-model/,
    });
  });

  test('an error event in mid-stream', async () => {
    const stream = await client().messages.create(wishing('events=10+error_event=4', { stream: true }));
    await assert.rejects(collect(stream), /Overloaded/);
  });
});

describe('what the proxy itself says', () => {
  for (const stream of [false, true]) {
    test(`an unknown route and a refused connection, ${stream ? 'streamed' : 'whole'}`, async () => {
      await assert.rejects(client('/nowhere').messages.create({ ...CALL, stream }), {
        constructor: Anthropic.NotFoundError,
        message: /\/openai/,
      });
      await assert.rejects(client('/refused-anthropic').messages.create({ ...CALL, stream }), {
        constructor: Anthropic.InternalServerError,
        status: 502,
        message: /could not be reached from the proxy/,
      });
    });
  }
});

test('leaving a stream in the middle ends the work of the provider', async () => {
  const before = await aborts();
  let count = 0;
  for await (const _ of await client().messages.create(wishing('events=5000', { stream: true, max_tokens: 8000 }))) {
    if (++count === 3) break;
  }
  await assertAborted(before);
});

test('an abort before the head ends the work of the provider', async () => {
  const before = await aborts();
  const controller = new AbortController();
  const call = client().messages.create(wishing('delay=30'), { signal: controller.signal });
  setTimeout(() => controller.abort(), 300);
  await assert.rejects(call, Anthropic.APIUserAbortError);
  await assertAborted(before);
});

for (const fault of ['cut', 'reset']) {
  test(`a stream that the provider breaks off raises (${fault})`, async () => {
    const call = wishing(`events=50+${fault}=2000`);
    await assert.rejects(async () => collect(await client().messages.create({ ...call, stream: true })));
    await assert.rejects(client().messages.stream(call).finalMessage());
  });
}
