// npm oidc-provider as an issuer on loopback: dynamic registration, PKCE, resource indicators, metadata at both well-known
// places. Access tokens are JWTs (RS256) whose `aud` is the resource asked for. Whoever comes is logged in as alice and
// consents to everything, so that a client without a browser gets through by following redirects with its cookies.
//
// --opaque issues opaque access tokens instead; introspection (RFC 7662) answers the client `gate`, whose secret is `gate-secret`.
//
// --issuer URL is what it is called where something ends TLS before it; X-Forwarded-* are believed then.
//
// Also POST /token-for {resource, scope?, sub?} answers a token at once, for tests that are not about the dance.
import { createServer } from 'node:http';
import { parseArgs } from 'node:util';
import { exportJWK, generateKeyPair, importJWK, SignJWT } from 'jose';
import Provider from 'oidc-provider';

const { values } = parseArgs({
  options: {
    port: { type: 'string', default: '0' },
    scope: { type: 'string', default: 'mcp.use' },
    opaque: { type: 'boolean' },
    issuer: { type: 'string' },
  },
});

const { privateKey } = await generateKeyPair('RS256', { extractable: true });
const key = { ...(await exportJWK(privateKey)), kid: 'interop-1', alg: 'RS256', use: 'sig' };

const server = createServer();
await new Promise((resolve) => server.listen(Number(values.port), '127.0.0.1', resolve));
const issuer = values.issuer ?? `http://127.0.0.1:${server.address().port}`;

const provider = new Provider(issuer, {
  jwks: { keys: [key] },
  cookies: { keys: ['interop'] },
  clients: [{ client_id: 'gate', client_secret: 'gate-secret', grant_types: [], response_types: [], redirect_uris: [] }],
  scopes: ['openid', 'offline_access', ...values.scope.split(' ')],
  claims: { openid: ['sub'] },
  clientAuthMethods: ['none', 'client_secret_basic', 'client_secret_post'],
  pkce: { required: () => true },
  findAccount: (_ctx, id) => ({ accountId: id, claims: () => ({ sub: id }) }),
  interactions: { url: (_ctx, interaction) => `/interaction/${interaction.uid}` },
  ttl: { AccessToken: 600, AuthorizationCode: 60, Grant: 600, Interaction: 600, Session: 600, RefreshToken: 3600, IdToken: 600 },
  features: {
    devInteractions: { enabled: false },
    registration: { enabled: true },
    revocation: { enabled: true },
    introspection: { enabled: true },
    resourceIndicators: {
      enabled: true,
      useGrantedResource: () => true,
      getResourceServerInfo: (_ctx, resource) => ({
        scope: values.scope,
        audience: resource,
        accessTokenTTL: 600,
        accessTokenFormat: values.opaque ? 'opaque' : 'jwt',
        ...(values.opaque ? {} : { jwt: { sign: { alg: 'RS256' } } }),
      }),
    },
  },
});

provider.proxy = values.issuer !== undefined;

async function interact(request, response) {
  const { prompt, params, session } = await provider.interactionDetails(request, response);
  if (prompt.name === 'login') {
    return provider.interactionFinished(request, response, { login: { accountId: 'alice' } }, { mergeWithLastSubmission: false });
  }
  const grant = new provider.Grant({ accountId: session.accountId, clientId: params.client_id });
  if (prompt.details.missingOIDCScope) grant.addOIDCScope(prompt.details.missingOIDCScope.join(' '));
  for (const [resource, scopes] of Object.entries(prompt.details.missingResourceScopes ?? {}))
    grant.addResourceScope(resource, scopes.join(' '));
  const consent = { grantId: await grant.save() };
  return provider.interactionFinished(request, response, { consent }, { mergeWithLastSubmission: true });
}

async function tokenFor(request, response) {
  let body = '';
  for await (const part of request) body += part;
  const { resource, scope = values.scope, sub = 'alice', client_id = 'tests' } = JSON.parse(body);
  const token = await new SignJWT({ scope, client_id })
    .setProtectedHeader({ alg: 'RS256', kid: key.kid, typ: 'at+jwt' })
    .setIssuer(issuer)
    .setSubject(sub)
    .setAudience(resource)
    .setIssuedAt()
    .setExpirationTime('10m')
    .sign(await importJWK(key, 'RS256'));
  response.setHeader('content-type', 'application/json').end(JSON.stringify({ access_token: token }));
}

const serve = provider.callback();
server.on('request', (request, response) => {
  const fail = (error) => response.writeHead(500).end(String(error?.message));
  if (request.url.startsWith('/interaction/')) return interact(request, response).catch(fail);
  if (request.method === 'POST' && request.url === '/token-for') return tokenFor(request, response).catch(fail);
  return serve(request, response);
});
process.stdout.write(`PORT ${server.address().port}\n`);
