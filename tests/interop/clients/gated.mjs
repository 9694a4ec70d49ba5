// What the conformance suite runs as an MCP client: a gate in front of URL, and a caller who knows nothing of the server's issuer. The gate is
// the OAuth client that the suite looks at; who calls connects once the gate says so, by following the redirects, and tries again.
//
// gated.mjs --portcullis PROGRAM --issuer ISSUER URL; ISSUER is servers/oidc.mjs, whose tokens the gate takes. Exits with 0 when every
// request was answered in the end, and says on stdout, a line each, what was asked and what came.
import { spawn } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { createServer, request } from 'node:http';
import { createServer as createSocket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout } from 'node:timers/promises';
import { parseArgs } from 'node:util';
import { follow } from './browser.mjs';

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: { portcullis: { type: 'string' }, issuer: { type: 'string' } },
});
const upstream = positionals[0];
const scenario = process.env.MCP_CONFORMANCE_SCENARIO.replace('auth/', '');
const revision = process.env.MCP_CONFORMANCE_PROTOCOL_VERSION;
const context = JSON.parse(process.env.MCP_CONFORMANCE_CONTEXT ?? '{}');
const modern = revision >= '2026-07-28';
// More logins than this is what nobody would put up with.
const MOST_LOGINS = 3;

const directory = mkdtempSync(join(tmpdir(), 'gated-'));
const say = (...words) => console.log(...words);

// No other test listens on this address, so that a port that was free a moment ago still is.
const HERE = '127.0.7.2';

async function freePort() {
  const socket = createSocket();
  await new Promise((resolve) => socket.listen(0, HERE, resolve));
  const { port } = socket.address();
  await new Promise((resolve) => socket.close(resolve));
  return port;
}

// What an operator reads in the server's own metadata before writing a configuration by hand.
async function ask(url) {
  const response = await fetch(url);
  if (!response.ok) throw new Error(`${url} answered ${response.status}`);
  return response.json();
}
async function issuerOfUpstream() {
  const { origin, pathname } = new URL(upstream);
  const resource = await ask(`${origin}/.well-known/oauth-protected-resource${pathname}`);
  const [issuer] = resource.authorization_servers;
  return { issuer, ...(await ask(`${issuer}/.well-known/oauth-authorization-server`)) };
}

// The issuer of one scenario publishes no keys: its word on the caller's token is had by asking, and this is who answers.
async function introspector(token) {
  const claims = JSON.parse(Buffer.from(token.split('.')[1], 'base64url'));
  const server = createServer(async (incoming, response) => {
    let body = '';
    for await (const part of incoming) body += part;
    const active = new URLSearchParams(body).get('token') === token;
    const answer = active ? { active, ...claims, client_id: context.idp_client_id } : { active };
    response.setHeader('content-type', 'application/json').end(JSON.stringify(answer));
  });
  await new Promise((resolve) => server.listen(0, '127.0.0.1', resolve));
  return { url: `http://127.0.0.1:${server.address().port}/`, close: () => server.close() };
}

async function credential() {
  const client = { client_id: context.client_id, client_secret: context.client_secret };
  switch (scenario) {
    case 'pre-registration':
      return { connection: { issuer: (await issuerOfUpstream()).issuer, ...client } };
    case 'basic-cimd':
      // The one document that the suite knows; it isn't the gate's own, and so has to be configured.
      return { connection: { client_id: 'https://conformance-test.local/client-metadata.json', client_auth: 'none' } };
    case 'client-credentials-basic':
      return { client_credentials: { issuer: (await issuerOfUpstream()).issuer, ...client } };
    case 'client-credentials-jwt': {
      const { client_id, private_key_pem: private_key, signing_algorithm: algorithm } = context;
      return { client_credentials: { issuer: (await issuerOfUpstream()).issuer, client_id, private_key, algorithm } };
    }
    case 'enterprise-managed-authorization': {
      const { issuer, token_endpoint } = await issuerOfUpstream();
      return {
        exchange: {
          token_endpoint: context.idp_token_endpoint,
          client_id: context.idp_client_id,
          client_auth: 'none',
          audience: issuer,
          resource: upstream,
          subject_token_type: 'id_token',
          requested_token_type: 'id_jag',
          jwt_bearer: { token_endpoint, ...client },
        },
      };
    }
    case 'wif-jwt-bearer': {
      // As a platform hands its workloads tokens: in a file.
      writeFileSync(join(directory, 'workload.jwt'), context.valid_jwt);
      const { issuer } = await issuerOfUpstream();
      return { client_credentials: { issuer, client_id: context.client_id, client_auth: 'none', assertion_file: 'workload.jwt' } };
    }
    default:
      return { connection: {} };
  }
}

const port = await freePort();
const here = `http://${HERE}:${port}`;
const endpoint = `${here}/suite/mcp`;

async function identity() {
  if (!context.idp_id_token) {
    const body = JSON.stringify({ resource: endpoint, scope: '' });
    const granted = await fetch(`${values.issuer}/token-for`, { method: 'POST', body });
    return { token: (await granted.json()).access_token, identity: { issuer: values.issuer } };
  }
  const asked = await introspector(context.idp_id_token);
  const introspection = { endpoint: asked.url, client_id: 'gate', client_secret: 'gate-secret' };
  return {
    token: context.idp_id_token,
    identity: { issuer: context.idp_issuer, audiences: [context.idp_client_id], introspection },
    close: asked.close,
  };
}

// One request to the gate; its JSON-RPC answer, whichever way it comes, and its status.
function send(message, token, session) {
  const meta = {
    'io.modelcontextprotocol/protocolVersion': revision,
    'io.modelcontextprotocol/clientInfo': { name: 'gated', version: '1.0.0' },
    'io.modelcontextprotocol/clientCapabilities': {},
  };
  const params = modern ? { ...message.params, _meta: meta } : message.params;
  const body = JSON.stringify({ jsonrpc: '2.0', ...message, ...(params && { params }) });
  const headers = {
    authorization: `Bearer ${token}`,
    'content-type': 'application/json',
    accept: 'application/json, text/event-stream',
    'content-length': Buffer.byteLength(body),
    ...(message.method !== 'initialize' && { 'mcp-protocol-version': revision }),
    ...(modern && { 'mcp-method': message.method, ...(params?.name && { 'mcp-name': params.name }) }),
    ...(session && { 'mcp-session-id': session }),
  };
  return new Promise((resolve, reject) => {
    const outgoing = request(endpoint, { method: 'POST', headers }, async (response) => {
      let text = '';
      for await (const part of response) text += part;
      const data = text.match(/^data: ?(\{.*)$/m)?.[1] ?? text;
      let answer = null;
      try {
        answer = JSON.parse(data);
      } catch {
        // Not every refusal has a body.
      }
      resolve({ status: response.statusCode, headers: response.headers, answer });
    });
    outgoing.on('error', reject);
    outgoing.end(body);
  });
}

const config = join(directory, 'portcullis.yaml');
const tokenFile = join(directory, 'token');

// As somebody at a terminal does it: the address that the command prints is opened, and the one that the browser ends at is pasted back.
async function connect() {
  const person = ['--config', config, '--token-file', tokenFile];
  const command = spawn(values.portcullis, ['connect', 'suite', ...person], { cwd: directory, stdio: ['pipe', 'pipe', 'pipe'] });
  let [out, err] = ['', ''];
  command.stderr.on('data', (part) => (err += part));
  const ended = new Promise((resolve) => command.on('close', resolve));
  const printed = new Promise((resolve) => {
    command.stdout.on('data', (part) => {
      out += part;
      const found = out.match(/https?:\/\/\S+(?=\s)/);
      if (found) resolve(found[0]);
    });
    ended.then(() => resolve(null));
  });
  const start = await printed;
  if (start) {
    const back = await follow(start, `${here}/connect/callback`);
    command.stdin.write(`${back.href}\n`);
  }
  command.stdin.end();
  const code = await ended;
  // A running gate believes for a second what it knows of a login that is good: it may be this one that is too narrow.
  await setTimeout(1100);
  say(`connect: ${code} ${(code ? out + err : '').trim().replace(/\s+/g, ' ')}`);
  return code === 0;
}

async function call(token) {
  let session;
  let logins = 0;
  const steps = [
    ...(modern ? [] : [{ method: 'initialize', params: { protocolVersion: revision, capabilities: {}, clientInfo: { name: 'gated', version: '1.0.0' } } }]),
    ...(modern ? [] : [{ method: 'notifications/initialized' }]),
    { method: 'tools/list' },
    { method: 'tools/call', params: { name: 'test-tool', arguments: {} } },
    { method: 'tools/list' },
  ];
  for (const [index, step] of steps.entries()) {
    const message = step.method.startsWith('notifications/') ? step : { id: index, ...step };
    for (;;) {
      const { status, headers, answer } = await send(message, token, session);
      say(`${step.method}: ${status} ${answer?.error?.code ?? ''} ${answer?.error?.message ?? ''}`);
      session = headers['mcp-session-id'] ?? session;
      if (status < 300 && !answer?.error) break;
      if (answer?.error?.code !== 50202 || logins++ === MOST_LOGINS || !(await connect())) return false;
    }
  }
  return true;
}

let caller;
let gate;
let log = '';
let good = false;
try {
  caller = await identity();
  const listen = { address: `${HERE}:${port}`, public_url: here };
  const route = { path: '/suite/mcp', upstream: { urls: [upstream] }, credential: await credential() };
  writeFileSync(tokenFile, caller.token);
  // YAML is a superset of JSON.
  writeFileSync(config, JSON.stringify({ listen, identity: { corp: caller.identity }, routes: { suite: route } }));
  gate = spawn(values.portcullis, ['serve', '--config', config], { cwd: directory, stdio: ['ignore', 'pipe', 'pipe'] });
  await new Promise((resolve, reject) => {
    const heard = (part) => {
      log += part;
      if (/listening/.test(log)) resolve();
    };
    gate.stdout.on('data', heard);
    gate.stderr.on('data', heard);
    gate.on('close', () => reject(new Error('the gate did not start')));
  });
  good = await call(caller.token);
} catch (error) {
  say(`${error.stack}`);
}
if (!good) say(log);
caller?.close?.();
if (gate?.exitCode === null) {
  const ended = new Promise((resolve) => gate.on('close', resolve));
  gate.kill('SIGKILL');
  await ended;
}
rmSync(directory, { recursive: true });
process.exit(good ? 0 : 1);
