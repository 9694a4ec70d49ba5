// The whole OAuth dance of an SDK client against URL, without a browser: 401, resource metadata, issuer metadata,
// registration, PKCE, token, call. `--sdk v1|v2`; `--transport sse` for HTTP+SSE. Prints one JSON object: every HTTP exchange in
// order (method, path, status), what the token says, and what the call answered.
import { parseArgs } from 'node:util';
import { follow } from './browser.mjs';

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: { sdk: { type: 'string', default: 'v2' }, tool: { type: 'string' }, transport: { type: 'string', default: 'streamable' } },
});
const url = new URL(positionals[0]);
const redirectUrl = 'http://127.0.0.1:9/callback';

const v1 = '@modelcontextprotocol/sdk/client';
const { Client } = await import(values.sdk === 'v1' ? `${v1}/index.js` : '@modelcontextprotocol/client');
const { StreamableHTTPClientTransport } = await import(values.sdk === 'v1' ? `${v1}/streamableHttp.js` : '@modelcontextprotocol/client');
const { SSEClientTransport } = await import(values.sdk === 'v1' ? `${v1}/sse.js` : '@modelcontextprotocol/client');
const Transport = values.transport === 'sse' ? SSEClientTransport : StreamableHTTPClientTransport;

const exchanges = [];
async function watched(target, init) {
  const response = await fetch(target, init);
  const { origin, pathname } = new URL(target);
  const where = origin === url.origin ? 'gate' : 'issuer';
  const exchange = { to: where, method: init?.method ?? 'GET', path: pathname, status: response.status };
  if (response.status === 401) {
    exchange.challenge = response.headers.get('www-authenticate')?.replace(/(127\.0\.0\.1|localhost):\d+/g, '$1:PORT') ?? null;
  }
  exchanges.push(exchange);
  return response;
}

const asked = {};
let callback;
const saved = {};
const provider = {
  redirectUrl,
  clientMetadata: {
    client_name: 'interop',
    redirect_uris: [redirectUrl],
    grant_types: ['authorization_code', 'refresh_token'],
    response_types: ['code'],
    token_endpoint_auth_method: 'none',
  },
  state: () => 'interop-state',
  clientInformation: () => saved.client,
  saveClientInformation: (client) => void (saved.client = client),
  tokens: () => saved.tokens,
  saveTokens: (tokens) => void (saved.tokens = tokens),
  codeVerifier: () => saved.verifier,
  saveCodeVerifier: (verifier) => void (saved.verifier = verifier),
  saveDiscoveryState: (state) => void (saved.discovery = state),
  discoveryState: () => saved.discovery,
  async redirectToAuthorization(target) {
    for (const name of ['scope', 'resource', 'code_challenge_method']) asked[name] = target.searchParams.get(name);
    callback = (await follow(target, redirectUrl)).searchParams;
  },
};

const hidden = (text) => text?.replace(/(127\.0\.0\.1|localhost):\d+/g, '$1:PORT');
const report = {};
try {
  const transport = () => new Transport(url, { authProvider: provider, fetch: watched });
  const client = () => new Client({ name: 'oauth', version: '1.0.0' }, { versionNegotiation: { mode: values.transport === 'sse' ? 'legacy' : 'auto' } });
  let current = transport();
  let mcp = client();
  try {
    await mcp.connect(current);
    report.login = 'not asked for';
  } catch (error) {
    if (!callback) throw error;
    report.login = error.constructor.name;
    await (values.sdk === 'v1' ? current.finishAuth(callback.get('code')) : current.finishAuth(callback));
    mcp = client();
    current = transport();
    await mcp.connect(current);
  }
  report.asked = { ...asked, resource: hidden(asked.resource) };
  const { tools } = await mcp.listTools();
  report.tools = tools.map((tool) => tool.name);
  const name = values.tool ?? ['add', 'echo'].find((known) => report.tools.includes(known));
  const { content } = await mcp.callTool({ name, arguments: { a: 2, b: 3, message: 'hello' } });
  report.call = content.map((part) => part.text);
  const [, payload] = saved.tokens.access_token.split('.');
  const claims = payload && JSON.parse(Buffer.from(payload, 'base64url'));
  report.token = claims ? { aud: hidden([claims.aud].flat()[0]), scope: claims.scope, sub: claims.sub } : 'opaque';
  await mcp.close();
} catch (error) {
  report.error = `${error.constructor.name}: ${error.message}`;
}
report.exchanges = exchanges;
process.stdout.write(`${JSON.stringify(report)}\n`, () => process.exit(report.error ? 1 : 0));
