// What every Node client does, step for step as in scenario.py, and how its outcome is written down.
//
// A client hands over an `sdk`: the same few verbs over either SDK, each answering the wire's own JSON.
import { setTimeout as sleep } from 'node:timers/promises';
import { parseArgs } from 'node:util';

const STEP_MS = 10_000;
const ABSENT = 'not offered';

export function readOptions() {
  const { values, positionals } = parseArgs({
    allowPositionals: true,
    options: {
      token: { type: 'string' },
      transport: { type: 'string', default: 'streamable' },
      profile: { type: 'string', default: 'ours' },
      mode: { type: 'string', default: 'auto' },
      'expect-denied': { type: 'string' },
      trace: { type: 'boolean', default: false },
    },
  });
  if (positionals.length !== 1) {
    console.error('usage: CLIENT URL [--token T] [--transport streamable|sse|stdio] [--profile ours|everything|time] [--mode auto|legacy|modern]');
    process.exit(2);
  }
  // Over stdio, the command as a JSON array stands for the URL.
  const url = values.transport === 'stdio' ? JSON.parse(positionals[0]) : new URL(positionals[0]);
  return { ...values, url, headers: values.token ? { Authorization: `Bearer ${values.token}` } : {} };
}

// fetch() that remembers the first status of each method, which the SDKs keep to themselves.
export function watchedFetch(options) {
  const first = {};
  const watched = async (url, init) => {
    const response = await fetch(url, init);
    const method = init?.method ?? 'GET';
    first[method] ??= response.status;
    if (options.trace) {
      const path = new URL(url).pathname + new URL(url).search;
      const request = Object.fromEntries(new Headers(init?.headers));
      const line = { method, path, request, status: response.status, response: Object.fromEntries(response.headers) };
      process.stderr.write(`${JSON.stringify(line)}\n`);
    }
    return response;
  };
  return { watched, first };
}

// What came from the server outside answers. Progress is counted as it comes off the transport, for the SDKs drop the last
// notification of a call when its result arrives in the same read.
export class Inbox {
  methods = new Set();
  progress = 0;

  watch(transport) {
    transport.onmessage = (message) => {
      if (message.method === 'notifications/progress') this.progress++;
    };
    return transport;
  }

  async waitFor(...methods) {
    for (let tries = 0; tries < 250 && !methods.every((method) => this.methods.has(method)); tries++) await sleep(20);
    return methods.filter((method) => this.methods.has(method)).sort();
  }
}

export const answers = {
  capabilities: { sampling: {}, elicitation: {}, roots: {} },
  sampling: (request) => ({
    role: 'assistant',
    model: 'toy',
    content: { type: 'text', text: `you said ${[request.params.messages[0].content].flat()[0].text}` },
  }),
  elicitation: () => ({ action: 'accept', content: { name: 'Ada' } }),
  roots: () => ({ roots: [{ uri: 'file:///work', name: 'work' }] }),
};

const clean = (text) =>
  text
    .replace(/(127\.0\.0\.1|localhost|\[::1\]):\d+/g, '$1:PORT')
    .replace(/[0-9a-f]{8}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{12}/g, 'ID')
    .replace(/\d{4}-\d\d-\d\dT/g, 'DATE-T')
    .replace(/created at [^"]*/g, 'created at TIME');

function failure(error) {
  if (error === 'timeout') return { error: 'timeout' };
  if (typeof error?.code === 'number') return { error: { code: error.code, message: clean(error.message) } };
  return { error: `${error?.name}: ${clean(String(error?.message)).split('\n')[0]}` };
}

function content(result) {
  const outcome = { texts: (result.content ?? []).map((part) => clean(part.text ?? part.type)) };
  return result.isError ? { ...outcome, is_error: true } : outcome;
}

const within = (ms, promise) => {
  const timer = new AbortController();
  const late = sleep(ms, undefined, { signal: timer.signal }).then(() => Promise.reject('timeout'));
  return Promise.race([promise, late]).finally(() => {
    timer.abort();
    late.catch(() => {});
  });
};

class Scenario {
  steps = {};
  tools = [];

  constructor(options, inbox, sdk) {
    this.options = options;
    this.inbox = inbox;
    this.sdk = sdk;
  }

  async step(name, run) {
    try {
      this.steps[name] = await within(STEP_MS, run());
    } catch (error) {
      if (this.options.trace) console.error(error);
      this.steps[name] = failure(error);
    }
  }

  async listed(kind, key, field) {
    const names = [];
    let cursor;
    for (let page = 0; page < 100; page++) {
      const result = await this.sdk.list(kind, cursor);
      names.push(...result[key].map((item) => item[field]));
      cursor = result.nextCursor;
      if (!cursor) return names;
    }
    throw new Error('a list without end');
  }

  async call(name, args) {
    if (!this.tools.includes(name)) return ABSENT;
    return content(await this.sdk.call(name, args, {}));
  }

  async callWithProgress(name, args) {
    if (!this.tools.includes(name)) return ABSENT;
    const before = this.inbox.progress;
    const outcome = content(await this.sdk.call(name, args, { onprogress: () => {} }));
    return { ...outcome, progress: this.inbox.progress - before };
  }

  async cancel(name, args) {
    if (!this.tools.includes(name)) return ABSENT;
    const outcome = {};
    const enough = new AbortController();
    let started;
    const running = new Promise((resolve) => (started = resolve));
    const call = this.sdk
      .call(name, args, { onprogress: () => started(), signal: enough.signal })
      .then(content, (error) => (enough.signal.aborted ? 'cancelled' : failure(error)));
    await within(5000, Promise.race([running, call]));
    enough.abort('enough');
    outcome.caller = await call;
    if (this.tools.includes('was_cancelled')) {
      for (let tries = 0; tries < 50; tries++) {
        outcome.server = content(await this.sdk.call('was_cancelled', {}, {})).texts;
        if (outcome.server[0] === 'true') break;
        await sleep(100);
      }
    }
    return outcome;
  }

  async refused() {
    const denied = this.options['expect-denied'];
    const args = { prompt: 'x', message: 'x', n: 1, a: 1, b: 2, ids: [] };
    await this.step('tools', async () => {
      this.tools = await this.listed('tools', 'tools', 'name');
      return { listed: this.tools.includes(denied) };
    });
    await this.step('denied', async () => content(await this.sdk.call(denied, args, {})));
    await this.step('next', () =>
      this.tools.includes('add') ? this.call('add', { a: 2, b: 3 }) : this.call('echo', { message: 'hello' }),
    );
  }

  async run() {
    if (this.options['expect-denied']) return this.refused();
    const read = async (uri) => (await this.sdk.read(uri)).contents.map((item) => clean(item.text ?? 'blob').slice(0, 200));
    const prompt = async (name, args) => (await this.sdk.prompt(name, args)).messages.map((message) => message.content.text ?? '');

    await this.step('tools', async () => (this.tools = await this.listed('tools', 'tools', 'name')));
    await this.step('resources', () => this.listed('resources', 'resources', 'uri'));
    await this.step('templates', () => this.listed('templates', 'resourceTemplates', 'uriTemplate'));
    await this.step('prompts', () => this.listed('prompts', 'prompts', 'name'));
    if (this.options.profile === 'everything') {
      const long = 'trigger-long-running-operation';
      await this.step('call', () => this.call('echo', { message: 'hello' }));
      await this.step('add', () => this.call('get-sum', { a: 2, b: 3 }));
      await this.step('progress', () => this.callWithProgress(long, { duration: 0.5, steps: 5 }));
      await this.step('bad_arguments', () => this.call('get-sum', { a: 'two' }));
      await this.step('image', () => this.call('get-tiny-image', {}));
      await this.step('read', () => read('demo://resource/static/document/features.md'));
      await this.step('read_template', () => read('demo://resource/dynamic/text/7'));
      await this.step('prompt', () => prompt('args-prompt', { city: 'Oslo' }));
      await this.step('elicitation', () => this.call('trigger-elicitation-request', {}));
      await this.step('sampling', () => this.call('trigger-sampling-request', { prompt: 'hi' }));
      await this.step('roots', () => this.call('get-roots-list', {}));
      await this.step('resume', async () =>
        this.sdk.resume ? content(await this.sdk.resume(long, { duration: 1.2, steps: 6 })) : ABSENT,
      );
      await this.step('cancel', () => this.cancel(long, { duration: 4, steps: 40 }));
      await this.step('after_cancel', () => this.call('echo', { message: 'again' }));
    } else if (this.options.profile === 'time') {
      const noon = { time: '12:00', source_timezone: 'Europe/Oslo', target_timezone: 'Asia/Tokyo' };
      await this.step('call', () => this.call('convert_time', noon));
      await this.step('fail', () => this.call('convert_time', { ...noon, source_timezone: 'Nowhere' }));
      await this.step('bad_arguments', () => this.call('convert_time', {}));
    } else {
      await this.step('call', () => this.call('add', { a: 2, b: 3 }));
      await this.step('progress', () => this.callWithProgress('slow_count', { n: 5 }));
      await this.step('fail', () => this.call('fail', {}));
      await this.step('bad_arguments', () => this.call('add', { a: 'two' }));
      await this.step('read', () => read('memo://greeting'));
      await this.step('read_template', () => read('memo://note/milk'));
      await this.step('prompt', () => prompt('greet', { name: 'Ada' }));
      await this.step('elicitation', () => this.call('elicit_name', {}));
      await this.step('sampling', () => this.call('sample', { prompt: 'hi' }));
      await this.step('changes', async () => (this.tools.includes('touch') ? this.sdk.changes() : ABSENT));
      await this.step('resume', () => this.callWithProgress('resumable', { n: 6 }));
      await this.step('cancel', () => this.cancel('wait_forever', {}));
      await this.step('after_cancel', () => this.call('add', { a: 4, b: 5 }));
    }
    await this.step('unknown_tool', async () => content(await this.sdk.call('no_such_tool', {}, {})));
    await this.step('unknown_resource', () => read('memo://nowhere'));
  }
}

// `connect()` answers {told, sdk}; `sdk.end()` ends the session as the SDK would.
export async function main(options, first, inbox, connect) {
  let steps = {};
  try {
    const { told, sdk } = await within(STEP_MS, connect());
    const scenario = new Scenario(options, inbox, sdk);
    steps = scenario.steps;
    steps.connect = told;
    await scenario.run();
    await scenario.step('close', async () => (await sdk.end()) ?? 'ended');
  } catch (error) {
    if (options.trace) console.error(error);
    steps[steps.connect ? 'lost' : 'connect'] = failure(error);
  }
  steps.end = { stream: first.GET ?? null, delete: first.DELETE ?? null };
  process.stdout.write(`${JSON.stringify(steps)}\n`, () => process.exit(0));
}
