// Calls an API with openid-client, which finds the endpoint and makes the request. It keeps no token: common.mjs does.

import * as oauth from 'openid-client'

import { CLIENT_ID, ISSUER, SCOPE, Token, fetchPatiently, main, readSecret, refused } from './common.mjs'

// http is for a server on this very machine: leave it out elsewhere.
const execute = ISSUER.startsWith('http://') ? [oauth.allowInsecureRequests] : []
const options = { execute, algorithm: 'oauth2', [oauth.customFetch]: fetchPatiently }
let metadata

async function requestToken() {
  metadata ??= (await oauth.discovery(new URL(ISSUER), CLIENT_ID, undefined, oauth.None(), options)).serverMetadata()
  // Anew each time, with the secret of now: it may have been rotated.
  const server = new oauth.Configuration(metadata, CLIENT_ID, undefined, oauth.ClientSecretBasic(readSecret()))
  server[oauth.customFetch] = fetchPatiently
  execute.forEach((allow) => allow(server))
  try {
    return await oauth.clientCredentialsGrant(server, SCOPE ? { scope: SCOPE } : {})
  } catch (error) {
    throw refused(error)
  }
}

await main(new Token(requestToken))
