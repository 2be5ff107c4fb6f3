// An MCP server whose tool needs a token of Tokenhouse, with the scope tools:read.
//
// npm install; then
// ISSUER=https://tokens.example.com MCP_URL=https://tools.example.com/mcp PORT=8000 node server.mjs

import { requireBearerAuth } from '@modelcontextprotocol/sdk/server/auth/middleware/bearerAuth.js';
import { getOAuthProtectedResourceMetadataUrl, mcpAuthMetadataRouter } from '@modelcontextprotocol/sdk/server/auth/router.js';
import { InvalidTokenError } from '@modelcontextprotocol/sdk/server/auth/errors.js';
import { McpServer } from '@modelcontextprotocol/sdk/server/mcp.js';
import { StreamableHTTPServerTransport } from '@modelcontextprotocol/sdk/server/streamableHttp.js';
import express from 'express';
import { createRemoteJWKSet, jwtVerify } from 'jose';
import { z } from 'zod';

const { ISSUER, MCP_URL, PORT = '8000' } = process.env;
const SCOPES = ['tools:read'];
const keys = createRemoteJWKSet(new URL(`${ISSUER}/.well-known/jwks.json`));

// Verifies access tokens offline: RFC 9068 section 4.
async function verifyAccessToken(token) {
  try {
    const { payload } = await jwtVerify(token, keys, {
      issuer: ISSUER,
      audience: MCP_URL,
      typ: 'at+jwt',
      algorithms: ['RS256'],
      requiredClaims: ['client_id', 'exp'],
    });
    return {
      token,
      clientId: payload.client_id,
      scopes: (payload.scope ?? '').split(' ').filter(Boolean),
      expiresAt: payload.exp,
      resource: new URL(MCP_URL),
    };
  } catch {
    throw new InvalidTokenError('The token is not valid here.');
  }
}

function tools() {
  const server = new McpServer({ name: 'tools', version: '1.0.0' });
  server.registerTool(
    'add_numbers',
    { description: 'Add two numbers.', inputSchema: { a: z.number(), b: z.number() } },
    ({ a, b }, { authInfo }) => ({ content: [{ type: 'text', text: `${a + b}, for ${authInfo.clientId}` }] }),
  );
  return server;
}

const metadata = await (await fetch(`${ISSUER}/.well-known/oauth-authorization-server`)).json();
const app = express();
const resourceServerUrl = new URL(MCP_URL);
// The protected resource metadata (RFC 9728), which the challenge of a 401 names.
app.use(mcpAuthMetadataRouter({ oauthMetadata: metadata, resourceServerUrl, scopesSupported: SCOPES }));
app.use(
  requireBearerAuth({
    verifier: { verifyAccessToken },
    requiredScopes: SCOPES,
    resourceMetadataUrl: getOAuthProtectedResourceMetadataUrl(resourceServerUrl),
    expectedResource: resourceServerUrl,
  }),
);
app.post(resourceServerUrl.pathname, express.json(), async (request, response) => {
  const transport = new StreamableHTTPServerTransport({ sessionIdGenerator: undefined });
  response.on('close', () => transport.close());
  await tools().connect(transport);
  await transport.handleRequest(request, response, request.body);
});
app.listen(Number(PORT), '127.0.0.1');
