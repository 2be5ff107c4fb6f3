// DPoP: openid-client and oauth4webapi get tokens for a key of theirs, whether the server demands a nonce or not, and
// oauth4webapi checks token and proof as an API does.

import * as oauth from 'oauth4webapi'
import * as openid from 'openid-client'

import { failure, task, tell } from './task.mjs'

const { issuer, audience, id, secret } = task
const insecure = { [oauth.allowInsecureRequests]: true }
const url = new URL(issuer)
const client = { client_id: id }

const config = await openid.discovery(url, id, undefined, openid.ClientSecretBasic(secret), {
  execute: [openid.allowInsecureRequests],
})
const handle = openid.getDPoPHandle(config, await openid.randomDPoPKeyPair('ES256'))
// The second time it has the nonce of the first response.
const byOpenid = [
  await openid.clientCredentialsGrant(config, {}, { DPoP: handle }),
  await openid.clientCredentialsGrant(config, {}, { DPoP: handle }),
]

const response = await oauth.discoveryRequest(url, { algorithm: 'oauth2', ...insecure })
const server = await oauth.processDiscoveryResponse(url, response)
const DPoP = oauth.DPoP(client, await oauth.generateKeyPair('Ed25519'))

async function fetchToken() {
  const options = { DPoP, ...insecure }
  const authentication = oauth.ClientSecretPost(secret)
  const answer = await oauth.clientCredentialsGrantRequest(server, client, authentication, {}, options)
  return oauth.processClientCredentialsResponse(server, client, answer)
}

// It leaves it to its caller to send the request again.
const byWebapi = await fetchToken().catch((error) => {
  if (oauth.isDPoPNonceError(error)) return fetchToken()
  throw error
})

// What an API gets when the caller presents the token: nothing is sent, the request is kept.
async function presented(accessToken, withProof = DPoP) {
  let kept
  const keep = (target, { method, headers }) => {
    kept = new Request(target, { method, headers })
    return Promise.resolve(new Response())
  }
  const options = { DPoP: withProof, ...insecure, [oauth.customFetch]: keep }
  await oauth.protectedResourceRequest(accessToken, 'GET', new URL(audience), new Headers(), null, options)
  return kept
}

const validate = (request) => oauth.validateJwtAccessToken(server, request, audience, { requireDPoP: true, ...insecure })
const describe = ({ name, code, message }) => ({ name, code, message })
const ofAnother = oauth.DPoP(client, await oauth.generateKeyPair('ES256'))

tell({
  jkt: await handle.calculateThumbprint(),
  byOpenid,
  webapiJkt: await DPoP.calculateThumbprint(),
  byWebapi,
  claims: await validate(await presented(byWebapi.access_token)),
  stolen: await failure(async () => validate(await presented(byWebapi.access_token, ofAnother)), describe),
})
