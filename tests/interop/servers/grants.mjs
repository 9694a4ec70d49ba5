// Two grants that npm oidc-provider lacks: token exchange (RFC 8693), whose answer can be an ID-JAG, and JWT bearer (RFC 7523).
// Both believe only what they verified, refuse with the codes of their RFCs, and sign with the issuer's own key.
import { createRemoteJWKSet, jwtVerify, SignJWT } from 'jose';
import { errors } from 'oidc-provider';

const TYPE = 'urn:ietf:params:oauth:token-type:';
const EXCHANGE = 'urn:ietf:params:oauth:grant-type:token-exchange';
const BEARER = 'urn:ietf:params:oauth:grant-type:jwt-bearer';

const refuse = (error, description) => {
  throw new errors.CustomOIDCProviderError(error, description);
};

export class Grants {
  constructor(issuer, key, settings) {
    this.issuer = issuer;
    // {privateKey, publicKey, kid}
    this.key = key;
    this.settings = settings;
  }

  async sign(claims, { typ = 'at+jwt', lifetime = this.settings.lifetime } = {}) {
    const now = Math.floor(Date.now() / 1000);
    return new SignJWT({ iss: this.issuer, iat: now, exp: now + lifetime, jti: crypto.randomUUID(), ...claims })
      .setProtectedHeader({ alg: 'RS256', kid: this.key.kid, typ })
      .sign(this.key.privateKey);
  }

  // A token of this issuer's own; its claims. A client's token that is for no resource is opaque.
  async own(token, kind) {
    const opaque = !token?.includes('.') && (await this.provider.ClientCredentials.find(token));
    if (opaque) return { client_id: opaque.clientId };
    try {
      return (await jwtVerify(token, this.key.publicKey, { issuer: this.issuer })).payload;
    } catch (error) {
      return refuse('invalid_grant', `the ${kind} token is not good: ${error.code}`);
    }
  }

  async exchange(ctx) {
    const { client, params } = ctx.oidc;
    const list = (value) => (value === undefined ? [] : [value].flat());
    const [audience, resource] = [list(params.audience), list(params.resource)];
    if (![`${TYPE}access_token`, `${TYPE}jwt`, `${TYPE}id_token`].includes(params.subject_token_type))
      refuse('invalid_request', 'subject_token_type is none that is taken');
    if (Boolean(params.actor_token) !== Boolean(params.actor_token_type))
      refuse('invalid_request', 'actor_token and actor_token_type go together');
    const subject = await this.own(params.subject_token, 'subject');
    const actor = params.actor_token && (await this.own(params.actor_token, 'actor'));
    if (audience.length + resource.length === 0) refuse('invalid_target', 'for whom?');
    if ([...audience, ...resource].some((target) => this.settings.refused.includes(target)))
      refuse('invalid_target', 'nobody gets a token for that one');
    const wanted = params.requested_token_type ?? `${TYPE}access_token`;
    if (wanted === `${TYPE}id-jag`) {
      // draft-ietf-oauth-identity-assertion-authz-grant: for the client that the other issuer knows, and one audience.
      if (audience.length !== 1) refuse('invalid_request', 'an ID-JAG has one audience');
      const claims = { sub: subject.sub, aud: audience[0], client_id: this.settings.jagClient, scope: params.scope };
      if (resource.length) claims.resource = resource.length === 1 ? resource[0] : resource;
      ctx.body = {
        access_token: await this.sign(claims, { typ: 'oauth-id-jag+jwt', lifetime: 300 }),
        issued_token_type: wanted,
        token_type: 'N_A',
        expires_in: 300,
      };
      return;
    }
    const targets = [...audience, ...resource];
    const claims = {
      sub: subject.sub,
      aud: targets.length === 1 ? targets[0] : targets,
      client_id: client.clientId,
      scope: params.scope ?? subject.scope,
      ...(actor && { act: { sub: actor.sub ?? actor.client_id, ...(subject.act && { act: subject.act }) } }),
    };
    ctx.body = {
      access_token: await this.sign(claims, { typ: wanted === `${TYPE}id_token` ? 'JWT' : 'at+jwt' }),
      issued_token_type: wanted,
      token_type: wanted === `${TYPE}access_token` ? 'Bearer' : 'N_A',
      expires_in: this.settings.lifetime,
      ...(claims.scope && { scope: claims.scope }),
    };
  }

  async bearer(ctx) {
    const { client, params } = ctx.oidc;
    if (!params.assertion) refuse('invalid_request', 'an assertion is missing');
    const trusted = this.settings.trusts;
    if (!trusted) refuse('invalid_grant', 'this issuer trusts no other');
    let claims;
    try {
      const keys = createRemoteJWKSet(new URL(`${trusted}/jwks`));
      const verified = await jwtVerify(params.assertion, keys, { issuer: trusted, audience: this.issuer, typ: 'oauth-id-jag+jwt' });
      claims = verified.payload;
    } catch (error) {
      refuse('invalid_grant', `the assertion is not good: ${error.code}`);
    }
    if (claims.client_id !== client.clientId) refuse('invalid_grant', 'the assertion is another client\'s');
    const resource = params.resource ?? claims.resource;
    if (!resource || (claims.resource && claims.resource !== resource)) refuse('invalid_target', 'the assertion is for another resource');
    if (this.settings.used.has(claims.jti)) refuse('invalid_grant', 'the assertion was used before');
    this.settings.used.add(claims.jti);
    const scope = params.scope ?? claims.scope ?? this.settings.scope;
    ctx.body = {
      access_token: await this.sign({ sub: claims.sub, aud: resource, client_id: client.clientId, scope }),
      token_type: 'Bearer',
      expires_in: this.settings.lifetime,
      scope,
    };
  }

  register(provider) {
    this.provider = provider;
    const targets = ['audience', 'resource'];
    const asked = ['subject_token', 'subject_token_type', 'actor_token', 'actor_token_type', 'requested_token_type', 'scope', ...targets];
    provider.registerGrantType(EXCHANGE, (ctx) => this.exchange(ctx), asked, targets);
    provider.registerGrantType(BEARER, (ctx) => this.bearer(ctx), ['assertion', 'scope', 'resource']);
  }
}

export const GRANTS = { EXCHANGE, BEARER };
