// The `openai` package of npm.

import assert from 'node:assert/strict';
import {test} from 'node:test';
import OpenAI from 'openai';
import {zodResponseFormat} from 'openai/helpers/zod';
import {z} from 'zod';

const baseURL = `${process.env.QWELL_URL}/v1`;
const client = new OpenAI({baseURL, apiKey: 'none', maxRetries: 0});
const model = 'm';
const text = '你好 👍';
const messages = [{role: 'user', content: `say:${text}`}];

test('chat', async () => {
  const answer = await client.chat.completions.create({model, messages, n: 2});

  assert.deepEqual(answer.choices.map(choice => choice.message.content), [text, text]);
  assert.equal(answer.choices[0].finish_reason, 'stop');
  assert.equal(answer.usage.completion_tokens, 2 * (Buffer.byteLength(text) + 1));
  assert.match(answer._request_id, /./);
});

test('chat, chunk by chunk', async () => {
  const options = {include_usage: true};
  const stream = await client.chat.completions.create(
      {model, messages, stream: true, stream_options: options});

  const chunks = [];
  for await (const chunk of stream) chunks.push(chunk);
  const {usage} = chunks.pop();
  assert.equal(chunks.map(chunk => chunk.choices[0].delta.content ?? '').join(''), text);
  assert.equal(usage.completion_tokens, Buffer.byteLength(text) + 1);
});

test('the helper for streams', async () => {
  const stream = client.chat.completions.stream({model, messages, logprobs: true, top_logprobs: 1});

  const deltas = [];
  stream.on('content', delta => deltas.push(delta));
  const answer = await stream.finalChatCompletion();
  assert.equal(deltas.join(''), text);
  assert.equal(answer.choices[0].message.content, text);
  assert.equal(answer.choices[0].logprobs.content.length, Buffer.byteLength(text) + 1);
});

test('completions', async () => {
  const answer = await client.completions.create(
      {model, prompt: ['say:one', 'say:two'], echo: true, logprobs: 1});

  assert.deepEqual(answer.choices.map(choice => choice.text), ['say:oneone', 'say:twotwo']);
  assert.equal(answer.choices[1].logprobs.tokens.slice(0, -1).join(''), 'say:twotwo');
});

test('completions, chunk by chunk', async () => {
  const stream = await client.completions.create({model, prompt: `say:${text}`, stream: true});

  const texts = [];
  for await (const chunk of stream) texts.push(chunk.choices[0].text);
  assert.equal(texts.join(''), text);
});

test('abort', async () => {
  const stream = await client.completions.create(
      {model, prompt: 'slow:x', max_tokens: 4000, ignore_eos: true, stream: true});
  for await (const chunk of stream) {
    if (chunk.choices[0].text) break;  // closes the connection
  }
  const controller = new AbortController();
  const waiting = client.completions.create({model, prompt: 'hold'}, {signal: controller.signal});
  setTimeout(() => controller.abort(), 100);
  await assert.rejects(waiting, OpenAI.APIUserAbortError);

  let report = '';
  while (!report.startsWith('running=0 ')) {
    const answer = await client.completions.create({model, prompt: 'report', max_tokens: 64});
    report = answer.choices[0].text;
  }
});

test('tools', async () => {
  const call = '<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": 2}}\n</tool_call>';
  const add = {
    name: 'add',
    description: 'Add two numbers',
    parameters: {
      type: 'object',
      properties: {a: {type: 'integer'}, b: {type: 'integer'}},
      required: ['a', 'b'],
    },
    parse: JSON.parse,
    function: ({a, b}) => `say:${a + b} 👍`,
  };
  for (const stream of [false, true]) {
    const runner = client.chat.completions.runTools({
      model,
      messages: [{role: 'user', content: `say:${call}`}],
      tools: [{type: 'function', function: add}],
      stream,
    });
    assert.equal(await runner.finalContent(), '3 👍');
    const roles = runner.messages.map(message => message.role);
    assert.deepEqual(roles, ['user', 'assistant', 'tool', 'assistant']);
  }
});

test('structured output', async () => {
  const Sum = z.object({left: z.number(), right: z.number()});
  const answer = await client.chat.completions.parse({
    model,
    messages: [{role: 'user', content: 'say:{"left": 1, "right": 2}'}],
    response_format: zodResponseFormat(Sum, 'sum'),
  });

  assert.deepEqual(answer.choices[0].message.parsed, {left: 1, right: 2});
});

test('models', async () => {
  const ids = [];
  for await (const card of client.models.list()) ids.push(card.id);

  assert.deepEqual(ids, ['gpt-3.5-turbo']);
  assert.equal((await client.models.retrieve(ids[0])).id, ids[0]);
});

test('errors', async () => {
  const cases = [
    [{prompt: 'x', suffix: 'y'}, OpenAI.BadRequestError, {status: 400, param: 'suffix'}],
    [{prompt: 'full'}, OpenAI.RateLimitError, {status: 429, code: 'queue_full'}],
  ];
  for (const [body, kind, fields] of cases) {
    await assert.rejects(client.completions.create({model, ...body}), error => {
      assert.ok(error instanceof kind);
      for (const [name, value] of Object.entries(fields)) assert.equal(error[name], value);
      return true;
    });
  }
  await assert.rejects(client.models.retrieve('gpt-17'), OpenAI.NotFoundError);
});
