// oidc-provider: JWT access tokens by client credentials, RS256, everything in memory.
import Provider from 'oidc-provider';

import { AUDIENCE, CLIENT_ID, CLIENT_SECRET, ISSUER, LIFETIME_SECONDS, SCOPES, serve } from './cluster.mjs';

serve((key, port) => {
  const resource = {
    scope: SCOPES.join(' '),
    audience: AUDIENCE,
    accessTokenTTL: LIFETIME_SECONDS,
    accessTokenFormat: 'jwt',
    jwt: { sign: { alg: 'RS256' } },
  };
  const provider = new Provider(ISSUER, {
    clients: [
      {
        client_id: CLIENT_ID,
        client_secret: CLIENT_SECRET,
        grant_types: ['client_credentials'],
        redirect_uris: [],
        response_types: [],
        scope: SCOPES.join(' '),
      },
    ],
    scopes: SCOPES,
    jwks: { keys: [{ ...key.export({ format: 'jwk' }), kid: 'bench', use: 'sig', alg: 'RS256' }] },
    features: {
      clientCredentials: { enabled: true },
      devInteractions: { enabled: false },
      resourceIndicators: {
        enabled: true,
        defaultResource: () => AUDIENCE,
        getResourceServerInfo: () => resource,
        useGrantedResource: () => true,
      },
    },
    routes: { token: '/oauth/token' },
  });
  provider.listen(port, '127.0.0.1');
});
