// oauth4webapi: introspection with a signed answer whose signature is checked against the JWKS, and revocation.

import * as oauth from 'oauth4webapi'

import { task, tell } from './task.mjs'

const { issuer, id, secret, readerId, readerSecret, token } = task
const insecure = { [oauth.allowInsecureRequests]: true }
const url = new URL(issuer)
const server = await oauth.processDiscoveryResponse(
  url,
  await oauth.discoveryRequest(url, { algorithm: 'oauth2', ...insecure }),
)
const reader = { client_id: readerId, introspection_signed_response_alg: 'RS256' }

async function look() {
  const basic = oauth.ClientSecretBasic(readerSecret)
  const response = await oauth.introspectionRequest(server, reader, basic, token, insecure)
  const type = response.headers.get('content-type')
  const answer = await oauth.processIntrospectionResponse(server, reader, response)
  await oauth.validateApplicationLevelSignature(server, response, insecure)
  return { type, answer }
}

const before = await look()
const owner = { client_id: id }
const revoked = await oauth.revocationRequest(server, owner, oauth.ClientSecretPost(secret), token, insecure)
await oauth.processRevocationResponse(revoked)
tell({ before, after: await look() })
