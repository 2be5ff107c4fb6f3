// node-oauth2-server behind Node's own HTTP server: RS256 tokens by jsonwebtoken, clients in memory.
import { createHash, randomUUID, timingSafeEqual } from 'node:crypto';
import http from 'node:http';
import OAuth2Server from '@node-oauth/oauth2-server';
import jwt from 'jsonwebtoken';

import { AUDIENCE, CLIENT_ID, CLIENT_SECRET, ISSUER, LIFETIME_SECONDS, SCOPES, serve } from './cluster.mjs';

const digest = (text) => createHash('sha256').update(text).digest();

serve((key, port) => {
  const header = { alg: 'RS256', typ: 'at+jwt', kid: 'bench' };
  const client = { id: CLIENT_ID, grants: ['client_credentials'], digest: digest(CLIENT_SECRET) };
  const server = new OAuth2Server({
    accessTokenLifetime: LIFETIME_SECONDS,
    model: {
      getClient: (id, secret) => id === client.id && timingSafeEqual(digest(secret), client.digest) && client,
      getUserFromClient: ({ id }) => ({ id }),
      validateScope: (user, asked, scope) => scope ?? SCOPES,
      generateAccessToken: ({ id }, user, scope) => {
        const iat = Math.floor(Date.now() / 1000);
        const claims = { iss: ISSUER, sub: id, client_id: id, aud: AUDIENCE, iat, exp: iat + LIFETIME_SECONDS };
        return jwt.sign({ ...claims, jti: randomUUID(), scope: scope.join(' ') }, key, { algorithm: 'RS256', header });
      },
      saveToken: (token, of, user) => ({ ...token, client: of, user }),
    },
  });
  http
    .createServer(async (incoming, outgoing) => {
      const chunks = [];
      for await (const chunk of incoming) chunks.push(chunk);
      const body = Object.fromEntries(new URLSearchParams(Buffer.concat(chunks).toString()));
      const { method, headers } = incoming;
      const response = new OAuth2Server.Response({});
      await server.token(new OAuth2Server.Request({ method, headers, query: {}, body }), response).catch(() => {});
      outgoing.writeHead(response.status, { ...response.headers, 'Content-Type': 'application/json' });
      outgoing.end(JSON.stringify(response.body));
    })
    .listen(port, '127.0.0.1');
});
