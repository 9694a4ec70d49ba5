// Calls a tool twice with an SDK: asked.mjs URL --token T [--sdk v1|v2] [--mode auto|legacy] --tool NAME. A line on stdin is waited for before
// the second call, and whenever the user is asked to open a page. Prints one JSON a line: {answer}, {asked} (the question's parameters)
// or {code, data} (an error; the call is then made again).
import { createInterface } from 'node:readline';
import { parseArgs } from 'node:util';

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    token: { type: 'string' },
    sdk: { type: 'string', default: 'v2' },
    mode: { type: 'string', default: 'auto' },
    tool: { type: 'string' },
  },
});
const v1 = values.sdk === 'v1';
const sdk = '@modelcontextprotocol/sdk';
const { Client } = await import(v1 ? `${sdk}/client/index.js` : '@modelcontextprotocol/client');
const { StreamableHTTPClientTransport } = await import(v1 ? `${sdk}/client/streamableHttp.js` : '@modelcontextprotocol/client');

const lines = createInterface({ input: process.stdin })[Symbol.asyncIterator]();
const say = (said) => process.stdout.write(`${JSON.stringify(said)}\n`);
const told = async (said) => {
  say(said);
  await lines.next();
};

const client = new Client(
  { name: 'connect', version: '1.0.0' },
  { capabilities: { elicitation: { form: {}, url: {} } }, versionNegotiation: { mode: values.mode } },
);
if (!v1) {
  client.setRequestHandler('elicitation/create', async ({ params }) => {
    await told({ asked: params });
    return { action: 'accept' };
  });
}
const transport = new StreamableHTTPClientTransport(new URL(positionals[0]), {
  requestInit: { headers: { authorization: `Bearer ${values.token}` } },
});
await client.connect(transport);
const call = () => client.callTool({ name: values.tool, arguments: {} });
await told({ answer: await call() });
try {
  say({ answer: await call() });
} catch ({ code, data }) {
  await told({ code, data });
  say({ answer: await call() });
}
process.exit(0);
