// A client whose token is bound to a key of its own (RFC 9449), against URL: npm oauth4webapi finds the issuer, registers, gets
// the token and writes every proof; npm SDK v2 speaks MCP through it. Then a thief, who has seen whatever the client sent,
// tries to send as much himself. `--alg ES256|Ed25519` is the key's, `--transport sse` is HTTP+SSE, `--mode auto|legacy` as
// for the other clients. Prints one JSON object: what the gate says before there is a token, each exchange (method,
// path, status, and the challenge), what the call answered, and what the thief got.
import { parseArgs } from 'node:util';
import { Client, SSEClientTransport, StreamableHTTPClientTransport } from '@modelcontextprotocol/client';
import * as oauth from 'oauth4webapi';
import { follow } from './browser.mjs';

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    alg: { type: 'string', default: 'ES256' },
    transport: { type: 'string', default: 'streamable' },
    mode: { type: 'string', default: 'auto' },
  },
});
const url = new URL(positionals[0]);
const redirectUrl = 'http://127.0.0.1:9/callback';
// Everything here is on loopback.
const open = { [oauth.allowInsecureRequests]: true };

const hidden = (text) => text?.replace(/(127\.0\.0\.1|localhost):\d+/g, '$1:PORT') ?? null;
const challenge = (response) => hidden(response.headers.get('www-authenticate'));

// What a 401 says is what this is about; the library throws it.
const answered = (sending) =>
  sending.catch((error) => {
    if (error instanceof oauth.WWWAuthenticateChallengeError) return error.response;
    throw error;
  });

async function login(handle, report) {
  const resource = await oauth.processResourceDiscoveryResponse(url, await oauth.resourceDiscoveryRequest(url, open));
  report.resource = {
    required: resource.dpop_bound_access_tokens_required ?? null,
    algorithms: resource.dpop_signing_alg_values_supported ?? null,
  };
  const issuer = new URL(resource.authorization_servers[0]);
  const as = await oauth.processDiscoveryResponse(issuer, await oauth.discoveryRequest(issuer, { ...open, algorithm: 'oauth2' }));
  const client = await oauth.processDynamicClientRegistrationResponse(
    await oauth.dynamicClientRegistrationRequest(
      as,
      {
        client_name: 'bound',
        redirect_uris: [redirectUrl],
        grant_types: ['authorization_code'],
        response_types: ['code'],
        token_endpoint_auth_method: 'none',
        dpop_bound_access_tokens: true,
      },
      open,
    ),
  );
  const [verifier, state] = [oauth.generateRandomCodeVerifier(), oauth.generateRandomState()];
  const start = new URL(as.authorization_endpoint);
  start.search = new URLSearchParams({
    client_id: client.client_id,
    redirect_uri: redirectUrl,
    response_type: 'code',
    scope: resource.scopes_supported.join(' '),
    resource: resource.resource,
    state,
    code_challenge: await oauth.calculatePKCECodeChallenge(verifier),
    code_challenge_method: 'S256',
    dpop_jkt: await handle.calculateThumbprint(),
  });
  const callback = oauth.validateAuthResponse(as, client, await follow(start, redirectUrl), state);
  const granted = await oauth.authorizationCodeGrantRequest(as, client, oauth.None(), callback, redirectUrl, verifier, {
    ...open,
    DPoP: handle,
    additionalParameters: { resource: resource.resource },
  });
  const { access_token, token_type } = await oauth.processAuthorizationCodeResponse(as, client, granted);
  const { cnf } = JSON.parse(Buffer.from(access_token.split('.')[1], 'base64url'));
  report.token = { type: token_type, ours: cnf?.jkt === (await handle.calculateThumbprint()) };
  return access_token;
}

// What went over the wire to the gate, by the method; the last of each is what the thief has.
const sent = {};
const exchanges = [];
async function wire(target, init) {
  const { method, headers, body } = init;
  sent[method] = { target, headers, body };
  const response = await fetch(target, init);
  const exchange = { method, path: new URL(target).pathname, status: response.status };
  if (response.status === 401) exchange.challenge = challenge(response);
  exchanges.push(exchange);
  return response;
}

// fetch() for the SDK: proven, and once more when the gate wants a nonce in it.
const proving = (token, handle) => async (target, init) => {
  const send = () =>
    oauth.protectedResourceRequest(token, init?.method ?? 'GET', new URL(target), new Headers(init?.headers), init?.body, {
      ...open,
      DPoP: handle,
      signal: init?.signal,
      [oauth.customFetch]: wire,
    });
  try {
    return await send();
  } catch (error) {
    return oauth.isDPoPNonceError(error) ? answered(send()) : answered(Promise.reject(error));
  }
};

// A proof of this key that is good for another request.
async function proof(token, handle, method, target) {
  let headers;
  const keep = async (_target, init) => ((headers = init.headers), new Response());
  await oauth.protectedResourceRequest(token, method, new URL(target), undefined, undefined, { ...open, DPoP: handle, [oauth.customFetch]: keep });
  return headers.dpop;
}

// What somebody gets who has the token and a request, with a good proof, but not the key.
async function steal(method, token, owner, thief) {
  const { target, headers, body } = sent[method];
  const { dpop: used, authorization, ...rest } = headers;
  const other = method === 'GET' ? 'POST' : 'GET';
  const tries = {
    replayed: { authorization, dpop: used },
    'another key': { authorization, dpop: await proof(token, thief, method, target) },
    'another method': { authorization, dpop: await proof(token, owner, other, target) },
    'another URL': { authorization, dpop: await proof(token, owner, method, new URL('/elsewhere/mcp', target)) },
    'another token': { authorization, dpop: await proof(`${token}x`, owner, method, target) },
    'no proof': { authorization },
    bearer: { authorization: `Bearer ${token}` },
    'bearer with a proof': { authorization: `Bearer ${token}`, dpop: await proof(token, owner, method, target) },
  };
  const got = {};
  for (const [name, credentials] of Object.entries(tries)) {
    const response = await fetch(target, { method, headers: { ...rest, ...credentials }, body });
    got[name] = { status: response.status, challenge: challenge(response) };
    await response.body?.cancel();
  }
  // The owner may, so it was nothing else about these requests.
  const owned = await fetch(target, { method, headers: { ...rest, authorization, dpop: await proof(token, owner, method, target) }, body });
  got.owner = { status: owned.status, challenge: challenge(owned) };
  await owned.body?.cancel();
  return got;
}

const report = {};
try {
  const stranger = await fetch(url);
  report.stranger = { status: stranger.status, challenge: challenge(stranger) };
  const keys = await oauth.generateKeyPair(values.alg);
  const owner = oauth.DPoP({}, keys);
  const token = await login(owner, report);
  const Transport = values.transport === 'sse' ? SSEClientTransport : StreamableHTTPClientTransport;
  const transport = new Transport(url, { fetch: proving(token, owner) });
  const mode = values.transport === 'sse' ? 'legacy' : values.mode;
  const mcp = new Client({ name: 'bound', version: '1.0.0' }, { versionNegotiation: { mode } });
  await mcp.connect(transport);
  report.protocol = mcp.getNegotiatedProtocolVersion();
  report.tools = (await mcp.listTools()).tools.map((tool) => tool.name);
  const { content } = await mcp.callTool({ name: 'add', arguments: { a: 2, b: 3 } });
  report.call = content.map((part) => part.text);
  const thief = oauth.DPoP({}, await oauth.generateKeyPair(values.alg));
  report.thief = {};
  for (const method of Object.keys(sent).sort()) report.thief[method] = await steal(method, token, owner, thief);
  if (transport.sessionId) await transport.terminateSession();
  await mcp.close();
} catch (error) {
  report.error = `${error.constructor.name}: ${error.message} ${JSON.stringify(error.cause) ?? ''}`;
}
report.exchanges = exchanges;
process.stdout.write(`${JSON.stringify(report)}\n`, () => process.exit(report.error ? 1 : 0));
