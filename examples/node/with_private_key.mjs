// Calls an API as a client without a secret: it signs an assertion with its key, for each token request.
// An assertion is good once. One that the server may have seen is never sent again: each attempt signs a new one.

import { createPrivateKey, webcrypto } from 'node:crypto'
import { readFileSync } from 'node:fs'

import * as oauth from 'oauth4webapi'

import { CLIENT_ID, ISSUER, SCOPE, Token, fetchOnce, fetchPatiently, main, patiently, refused } from './common.mjs'

// http is for a server on this very machine: leave it out elsewhere.
const insecure = { [oauth.allowInsecureRequests]: ISSUER.startsWith('http://') }
const issuer = new URL(ISSUER)
let server

async function discover() {
  const answer = await oauth.discoveryRequest(issuer, {
    algorithm: 'oauth2',
    [oauth.customFetch]: fetchPatiently,
    ...insecure,
  })
  return oauth.processDiscoveryResponse(issuer, answer)
}

// Anew each time: it may have been replaced.
async function readKey() {
  const der = createPrivateKey(readFileSync(process.env.CLIENT_KEY_FILE)).export({ type: 'pkcs8', format: 'der' })
  return webcrypto.subtle.importKey('pkcs8', der, { name: 'RSASSA-PKCS1-v1_5', hash: 'SHA-256' }, false, ['sign'])
}

async function requestToken() {
  server ??= await discover()
  const [client, key] = [{ client_id: CLIENT_ID }, await readKey()]
  const options = { [oauth.customFetch]: fetchOnce, ...insecure }
  const parameters = SCOPE ? { scope: SCOPE } : {}
  const answer = await patiently(() =>
    oauth.clientCredentialsGrantRequest(server, client, oauth.PrivateKeyJwt(key), parameters, options),
  )
  try {
    return await oauth.processClientCredentialsResponse(server, client, answer)
  } catch (error) {
    throw refused(error)
  }
}

await main(new Token(requestToken))
