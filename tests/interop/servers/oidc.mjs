// npm oidc-provider as an issuer on loopback: code with PKCE, device flow, refresh tokens that rotate and betray their reuse, client
// credentials, dynamic registration, client id metadata documents, resource indicators, revocation, RFC 9207, metadata at both
// well-known places, and the grants of grants.mjs. Access tokens are JWTs (RS256) whose `aud` is the resource asked for. Whoever
// comes is logged in as alice, or as the login_hint, and consents to everything, so that a client without a browser gets through by
// following redirects with its cookies; --form asks for the name in a form instead.
//
// --opaque issues opaque access tokens instead; introspection (RFC 7662) answers the client `gate`, whose secret is `gate-secret`.
//
// --issuer URL is what it is called where something ends TLS before it; X-Forwarded-* are believed then.
//
// --certificate F --key F speaks TLS itself, and knows clients by their certificates (RFC 8705).
//
// --client-documents ORIGIN: reads client id metadata documents of this https origin, at the address that a test sets: there is nobody of
// that name on loopback.
//
// Also POST /token-for {resource, scope?, sub?, client_id?, lifetime?} answers a token at once, for tests that are not about the dance, and
// /control/ tells tests what happened and makes things happen: see the end of this file.
import { readFileSync } from 'node:fs';
import { createServer } from 'node:http';
import { createServer as createTlsServer } from 'node:https';
import { parseArgs } from 'node:util';
import { exportJWK, generateKeyPair } from 'jose';
import Provider from 'oidc-provider';
import { GRANTS, Grants } from './grants.mjs';

const { values } = parseArgs({
  options: {
    port: { type: 'string', default: '0' },
    scope: { type: 'string', default: 'mcp.use' },
    opaque: { type: 'boolean' },
    form: { type: 'boolean' },
    issuer: { type: 'string' },
    certificate: { type: 'string' },
    key: { type: 'string' },
    'client-documents': { type: 'string' },
  },
});

// What tests change while it runs.
const settings = {
  // Seconds that access tokens live from now on.
  lifetime: 600,
  // Whose ID-JAGs are taken, and for which client they are made out here.
  trusts: null,
  jagClient: 'gate',
  // Audiences and resources that no token is exchanged for.
  refused: [],
  // Where `--client-documents` really are.
  documents: null,
  // The token endpoint's answer instead of its own: {status, body, times}.
  broken: null,
  scope: values.scope,
  used: new Set(),
};

const pair = await generateKeyPair('RS256', { extractable: true });
const key = { ...(await exportJWK(pair.privateKey)), kid: 'interop-1', alg: 'RS256', use: 'sig' };

const tls = values.certificate && {
  cert: readFileSync(values.certificate),
  key: readFileSync(values.key),
  requestCert: true,
  rejectUnauthorized: false,
};
const server = tls ? createTlsServer(tls) : createServer();
await new Promise((resolve) => server.listen(Number(values.port), '127.0.0.1', resolve));
const issuer = values.issuer ?? `${tls ? 'https://localhost' : 'http://127.0.0.1'}:${server.address().port}`;

const secret = { client_secret: 'gate-secret', redirect_uris: [], response_types: [] };
const documents = values['client-documents'];
const provider = new Provider(issuer, {
  jwks: { keys: [key] },
  cookies: { keys: ['interop'] },
  clients: [
    { ...secret, client_id: 'gate', grant_types: [GRANTS.EXCHANGE, GRANTS.BEARER, 'client_credentials'] },
    { ...secret, client_id: 'gate-post', grant_types: ['client_credentials'], token_endpoint_auth_method: 'client_secret_post' },
  ],
  scopes: ['openid', 'offline_access', ...values.scope.split(' ')],
  claims: { openid: ['sub'], email: ['email'] },
  clientAuthMethods: [
    ...['none', 'client_secret_basic', 'client_secret_post', 'private_key_jwt'],
    ...(tls ? ['self_signed_tls_client_auth'] : []),
  ],
  pkce: { required: (_ctx, client) => client.redirectUris.length > 0 },
  rotateRefreshToken: true,
  // Many issuers give one without being asked for offline_access.
  issueRefreshToken: (_ctx, client) => client.grantTypeAllowed('refresh_token'),
  findAccount: (_ctx, id) => ({ accountId: id, claims: () => ({ sub: id, email: `${id}@corp.example` }) }),
  interactions: { url: (_ctx, interaction) => `/interaction/${interaction.uid}` },
  ttl: {
    AccessToken: () => settings.lifetime,
    ClientCredentials: () => settings.lifetime,
    AuthorizationCode: 60,
    DeviceCode: 600,
    Grant: 3600,
    Interaction: 600,
    Session: 600,
    RefreshToken: 3600,
    IdToken: 600,
  },
  fetch: (url, options) => {
    if (!documents || !String(url).startsWith(`${documents}/`)) return globalThis.fetch(url, options);
    // The library's dispatcher refuses loopback, where the documents of tests are, and its patience is for quick machines.
    const ours = { ...options, dispatcher: undefined, signal: AbortSignal.timeout(20_000) };
    return globalThis.fetch(settings.documents + String(url).slice(documents.length), ours);
  },
  features: {
    devInteractions: { enabled: false },
    registration: { enabled: true },
    revocation: { enabled: true },
    introspection: { enabled: true },
    clientCredentials: { enabled: true },
    deviceFlow: { enabled: true },
    clientIdMetadataDocument: { enabled: documents !== undefined, ack: 'draft-02' },
    mTLS: {
      enabled: Boolean(tls),
      selfSignedTlsClientAuth: true,
      getCertificate: (ctx) => ctx.socket.getPeerX509Certificate()?.toString(),
    },
    resourceIndicators: {
      enabled: true,
      defaultResource: (_ctx, _client, oneOf) => oneOf?.[0],
      useGrantedResource: () => true,
      getResourceServerInfo: (_ctx, resource) => ({
        scope: values.scope,
        audience: resource,
        accessTokenTTL: settings.lifetime,
        accessTokenFormat: values.opaque ? 'opaque' : 'jwt',
        ...(values.opaque ? {} : { jwt: { sign: { alg: 'RS256' } } }),
      }),
    },
  },
});

provider.proxy = values.issuer !== undefined;
const grants = new Grants(issuer, { ...pair, kid: key.kid }, settings);
grants.register(provider);

async function read(request) {
  let body = '';
  for await (const part of request) body += part;
  return body;
}

const json = (response, value) => response.setHeader('content-type', 'application/json').end(JSON.stringify(value));

async function interact(request, response) {
  const { prompt, params, session } = await provider.interactionDetails(request, response);
  if (prompt.name === 'login') {
    const typed = values.form && request.method === 'POST' && new URLSearchParams(await read(request)).get('name');
    if (values.form && !typed) {
      response.setHeader('content-type', 'text/html');
      return response.end('<form method="post"><label>Name <input name="name" autofocus></label><button>Log in</button></form>');
    }
    const login = { accountId: typed || params.login_hint || 'alice' };
    return provider.interactionFinished(request, response, { login }, { mergeWithLastSubmission: false });
  }
  const grant = new provider.Grant({ accountId: session.accountId, clientId: params.client_id });
  if (prompt.details.missingOIDCScope) grant.addOIDCScope(prompt.details.missingOIDCScope.join(' '));
  for (const [resource, scopes] of Object.entries(prompt.details.missingResourceScopes ?? {}))
    grant.addResourceScope(resource, scopes.join(' '));
  const consent = { grantId: await grant.save() };
  return provider.interactionFinished(request, response, { consent }, { mergeWithLastSubmission: true });
}

async function tokenFor(request, response) {
  const { resource, scope = values.scope, sub = 'alice', client_id = 'tests', ...claims } = JSON.parse(await read(request));
  const { lifetime = 600, typ, ...rest } = claims;
  const token = await grants.sign({ sub, aud: resource, scope, client_id, ...rest }, { lifetime, typ });
  json(response, { access_token: token });
}

// What came to the endpoints that clients call, in order: never a token, a code or a secret.
const seen = [];
const refreshing = new Map();
const held = [];
provider.on('refresh_token.saved', (token) => refreshing.set(token.jti, token));

const SECRET = /token$|^code|secret|assertion$|verifier|challenge|^state$/;
provider.use(async (ctx, next) => {
  if (ctx.method === 'POST' && ctx.path === '/token' && settings.held) await new Promise((resolve) => held.push(resolve));
  if (ctx.method === 'POST' && ctx.path === '/token' && settings.broken?.times !== 0 && settings.broken) {
    if (settings.broken.times) settings.broken.times -= 1;
    ctx.status = settings.broken.status;
    ctx.body = settings.broken.body;
    seen.push({ endpoint: 'token', broken: true, status: ctx.status });
    return;
  }
  await next();
  const oidc = ctx.oidc;
  if (!oidc?.route) return;
  const plain = Object.entries(oidc.params ?? {}).filter(([name, value]) => value !== undefined && !SECRET.test(name));
  seen.push({
    endpoint: oidc.route,
    status: ctx.status,
    client: oidc.client?.clientId,
    authentication: oidc.client?.clientAuthMethod,
    params: Object.fromEntries(plain),
    given: Object.keys(oidc.params ?? {}).filter((name) => oidc.params[name] !== undefined),
    ...(ctx.body?.error && { error: ctx.body.error, description: ctx.body.error_description }),
  });
});

// GET  /control/seen             every request to an endpoint: which client, how it authenticated, its parameters, the refusal
// POST /control/set {…}          changes the settings above; {held: true} keeps token requests waiting until {held: false}
// POST /control/revoke           ends every refresh token there is, with all that was granted with it
// POST /control/client {…}       registers a client, by hand as it were
async function control(request, response) {
  const asked = new URL(request.url, issuer).pathname.split('/')[2];
  if (request.method === 'GET' && asked === 'seen') return json(response, seen);
  const given = JSON.parse((await read(request)) || '{}');
  if (asked === 'set') {
    Object.assign(settings, given);
    if (!settings.held) for (const go of held.splice(0)) go();
  } else if (asked === 'client') {
    await provider.Client.adapter.upsert(given.client_id, given);
  } else if (asked === 'revoke') {
    for (const token of refreshing.values()) {
      const grant = await provider.Grant.find(token.grantId);
      await grant?.destroy();
      await (await provider.RefreshToken.find(token.jti))?.destroy();
    }
    refreshing.clear();
  } else {
    response.statusCode = 404;
  }
  return json(response, {});
}

const serve = provider.callback();
server.on('request', (request, response) => {
  const fail = (error) => response.writeHead(500).end(String(error?.message));
  if (request.url.startsWith('/interaction/')) return interact(request, response).catch(fail);
  if (request.url.startsWith('/control/')) return control(request, response).catch(fail);
  if (request.method === 'POST' && request.url === '/token-for') return tokenFor(request, response).catch(fail);
  return serve(request, response);
});
process.stdout.write(`PORT ${server.address().port}\n`);
