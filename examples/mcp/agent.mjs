// An agent without a user: it gets a token of Tokenhouse and calls a tool of an MCP server.
//
// node agent.mjs URL [TOOL [ARGUMENTS]], with ISSUER and CLIENT_ID in the environment, and
//
// - CLIENT_SECRET_FILE for a client with a secret, or
// - CLIENT_KEY_FILE, and CLIENT_KEY_ALG unless it is RS256, for a client with a key.

import { readFileSync } from 'node:fs';
import { ClientCredentialsProvider, PrivateKeyJwtProvider } from '@modelcontextprotocol/sdk/client/auth-extensions.js';
import { Client } from '@modelcontextprotocol/sdk/client/index.js';
import { StreamableHTTPClientTransport } from '@modelcontextprotocol/sdk/client/streamableHttp.js';

const { ISSUER, CLIENT_ID, CLIENT_SECRET_FILE, CLIENT_KEY_FILE, CLIENT_KEY_ALG = 'RS256' } = process.env;
const [url, tool, args = '{}'] = process.argv.slice(2);
const known = { clientId: CLIENT_ID, expectedIssuer: ISSUER };
const authProvider = CLIENT_KEY_FILE
  ? new PrivateKeyJwtProvider({ ...known, privateKey: readFileSync(CLIENT_KEY_FILE, 'utf8'), algorithm: CLIENT_KEY_ALG })
  : new ClientCredentialsProvider({ ...known, clientSecret: readFileSync(CLIENT_SECRET_FILE, 'utf8').replace(/\n$/, '') });

const client = new Client({ name: 'agent', version: '1.0.0' });
await client.connect(new StreamableHTTPClientTransport(new URL(url), { authProvider }));
const { tools } = await client.listTools();
console.log(tools.map((tool) => tool.name).join(' '));
if (tool) {
  const result = await client.callTool({ name: tool, arguments: JSON.parse(args) });
  console.log(result.content[0].text);
}
await client.close();
