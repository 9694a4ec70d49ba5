// Calls one tool with an SDK, all calls at once on one connection: call.mjs URL --token T [--sdk v1|v2] [--mode auto|legacy] [--tool whoami]
// [--calls 1]. Prints {answers, errors}: what the tool said, or the error's code, message and data, and the URL that the caller was
// asked to open, which this client says that it can.
import { parseArgs } from 'node:util';

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    token: { type: 'string' },
    sdk: { type: 'string', default: 'v2' },
    mode: { type: 'string', default: 'auto' },
    tool: { type: 'string', default: 'whoami' },
    calls: { type: 'string', default: '1' },
    elicits: { type: 'boolean' },
  },
});
const v1 = '@modelcontextprotocol/sdk/client';
const { Client } = await import(values.sdk === 'v1' ? `${v1}/index.js` : '@modelcontextprotocol/client');
const { StreamableHTTPClientTransport } = await import(values.sdk === 'v1' ? `${v1}/streamableHttp.js` : '@modelcontextprotocol/client');

const [answers, errors] = [[], []];
const failed = (error) => errors.push({ name: error.constructor.name, code: error.code, message: error.message, data: error.data });
try {
  const transport = new StreamableHTTPClientTransport(new URL(positionals[0]), {
    requestInit: { headers: { authorization: `Bearer ${values.token}` } },
  });
  const capabilities = values.elicits ? { elicitation: { form: {}, url: {} } } : {};
  const client = new Client({ name: 'call', version: '1.0.0' }, { capabilities, versionNegotiation: { mode: values.mode } });
  await client.connect(transport);
  const call = () => client.callTool({ name: values.tool, arguments: {} });
  const calls = await Promise.allSettled(Array.from({ length: Number(values.calls) }, call));
  for (const { value, reason } of calls) {
    if (reason) failed(reason);
    else answers.push(value.structuredContent ?? JSON.parse(value.content[0].text));
  }
  await client.close();
} catch (error) {
  failed(error);
}
process.stdout.write(`${JSON.stringify({ answers, errors })}\n`, () => process.exit(0));
