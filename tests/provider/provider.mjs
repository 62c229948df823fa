// The certified OpenID provider `oidc-provider`, with authentik's addresses and claims.
//
//   PORT=9400 RP=http://localhost:8080 node provider.mjs
//
// alice and bob sign in with their names as passwords. With CERT and KEY, PEM files, it serves https.
import { createPrivateKey, generateKeyPairSync } from 'node:crypto';
import { readFileSync } from 'node:fs';
import * as http from 'node:http';
import * as https from 'node:https';
import { Provider } from 'oidc-provider';

const { PORT, RP, CLIENT_ID, CLIENT_SECRET, ALG = 'RS256', CERT, KEY } = process.env;
const origin = `${CERT ? 'https' : 'http'}://localhost:${PORT}`;
const base = '/application/o/berth/';

const users = { alice: ['dev'], bob: ['ops'] };
// By way of PEM: to export a generated key as JWK may wait for itself for ever, if garbage is collected just then (Node 20).
const encodings = { privateKeyEncoding: { type: 'pkcs8', format: 'pem' }, publicKeyEncoding: { type: 'spki', format: 'pem' } };
const key = (type, options, kid) => {
  const { privateKey } = generateKeyPairSync(type, { ...options, ...encodings });
  return { ...createPrivateKey(privateKey).export({ format: 'jwk' }), use: 'sig', kid };
};

const provider = new Provider(`${origin}${base}`, {
  clients: [{
    client_id: CLIENT_ID,
    client_secret: CLIENT_SECRET,
    grant_types: ['authorization_code', 'refresh_token'],
    redirect_uris: [`${RP}/zot/auth/callback/oidc`],
    post_logout_redirect_uris: [`${RP}/`],
    id_token_signed_response_alg: ALG,
    backchannel_logout_uri: `${RP}/zot/auth/backchannel-logout/oidc`,
    backchannel_logout_session_required: true,
  }],
  jwks: { keys: [key('rsa', { modulusLength: 2048 }, 'rsa'), key('ec', { namedCurve: 'P-256' }, 'ec')] },
  // authentik lists the one algorithm that it uses.
  enabledJWA: { idTokenSigningAlgValues: [ALG] },
  scopes: ['openid', 'offline_access'],
  claims: { openid: ['sub'], email: ['email', 'email_verified'], profile: ['name', 'preferred_username', 'groups'] },
  conformIdTokenClaims: process.env.CLAIMS_AT_USERINFO === '1', // by default authentik puts them into the ID token
  findAccount: (_, id) => users[id] && {
    accountId: id,
    claims: () => ({ sub: id, name: id, preferred_username: id, groups: users[id], email: `${id}@example.com`, email_verified: false }),
  },
  routes: {
    authorization: '/application/o/authorize/',
    token: '/application/o/token/',
    userinfo: '/application/o/userinfo/',
    introspection: '/application/o/introspect/',
    revocation: '/application/o/revoke/',
    jwks: `${base}jwks/`,
    end_session: `${base}end-session/`,
  },
  features: {
    devInteractions: { enabled: false },
    backchannelLogout: { enabled: true },
    dPoP: { enabled: false },
    pushedAuthorizationRequests: { enabled: false },
    rpInitiatedLogout: {
      logoutSource: (context, form) => {
        const sure = '<input type="hidden" name="logout" value="yes"><button id="sign-out">Sign out</button></form>';
        context.body = `<!doctype html><title>Sign out</title>${form.replace('</form>', sure)}`;
      },
    },
  },
  interactions: { url: (_, interaction) => `/login/${interaction.uid}` },
  // Consent is implicit, as in authentik's default flow.
  async loadExistingGrant({ oidc: { client, session, params, result } }) {
    const id = result?.consent?.grantId ?? session.grantIdFor(client.clientId);
    const grant = (id && await provider.Grant.find(id))
      || new provider.Grant({ clientId: client.clientId, accountId: session.accountId });
    grant.addOIDCScope(params.scope ?? 'openid');
    await grant.save();
    return grant;
  },
  cookies: { keys: ['of the tests'] },
  // Logout tokens go to the tests' own machine, which its own dispatcher refuses.
  fetch: (url, { dispatcher, ...options }) => fetch(url, options),
});
provider.on('backchannel.error', (_, error) => console.error('backchannel logout:', error));
provider.on('server_error', (_, error) => console.error(error));
provider.on('grant.error', (_, error) => console.error(error.error, error.error_detail ?? error.error_description));

const form = `<!doctype html><title>Sign in</title><form method="post">
<input name="username"><input name="password" type="password"><button id="go">Sign in</button></form>`;

async function signIn(request, response) {
  await provider.interactionDetails(request, response);
  let body = '';
  for await (const chunk of request) body += chunk;
  const fields = new URLSearchParams(body);
  const name = fields.get('username');
  if (Object.hasOwn(users, name ?? '') && fields.get('password') === name) {
    return provider.interactionFinished(request, response, { login: { accountId: name } });
  }
  response.writeHead(200, { 'content-type': 'text/html; charset=utf-8' }).end(form);
}

const callback = provider.callback();
const handle = (request, response) => {
  if (request.url.startsWith('/login/')) {
    signIn(request, response).catch((error) => response.writeHead(400).end(error.message));
    return;
  }
  if (request.url === `${base}.well-known/openid-configuration`) request.url = '/.well-known/openid-configuration';
  callback(request, response);
};
const server = CERT
  ? https.createServer({ cert: readFileSync(CERT), key: readFileSync(KEY) }, handle)
  : http.createServer(handle);
server.listen(PORT, 'localhost');
