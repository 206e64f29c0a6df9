// Where the proxy and the simulator are (../stack.py says it), and what the simulator saw.
//
// The rule: every case is held against what the provider behind the proxy received, not against the SDK alone.

import assert from 'node:assert/strict';
import { setTimeout as sleep } from 'node:timers/promises';

const address = (name) => {
  assert.ok(process.env[name], `${name} is not set: start these tests with tests/sdk/run.sh node`);
  return process.env[name];
};

export const PROXY = address('PROXY_URL');
const SIMULATOR = address('SIMULATOR_URL');

export const KEY = 'sk-sdk-tests-0123456789';
const ABORT_LIMIT_MS = 1000;

/** The requests that this test's provider saw: the last ones of the whole run, the oldest first. */
export async function seen(count = 1) {
  const answer = await fetch(`${SIMULATOR}/_simulator/requests?last=${count}`);
  const { requests } = await answer.json();
  return requests.map((request) => ({
    ...request,
    values: (name) => request.fields.filter(([given]) => given.toLowerCase() === name).map(([, value]) => value),
  }));
}

/** How many answers the caller did not wait for, up to now. */
export async function aborts() {
  const answer = await fetch(`${SIMULATOR}/_simulator/connections`);
  return (await answer.json()).aborted;
}

/** Asserts that one more answer than `before` is aborted within a second from now. */
export async function assertAborted(before) {
  const deadline = performance.now() + ABORT_LIMIT_MS;
  while ((await aborts()) === before) {
    assert.ok(performance.now() < deadline, 'the provider still works a second after the caller left');
    await sleep(10);
  }
}

/** Asserts that nothing reached the provider but through the proxy, which leaves its Via on each request. */
export async function assertAllPassedTheProxy() {
  const requests = await seen(1000);
  assert.ok(requests.length > 0);
  assert.deepEqual(
    requests.filter((request) => request.values('via').length === 0).map((request) => request.target),
    [],
  );
}

/** Everything that an async iterable gives. */
export async function collect(stream) {
  const events = [];
  for await (const event of stream) events.push(event);
  return events;
}
