// openid-client and oauth4webapi: assertions by a key, at the token endpoint and for introspection.

import * as oauth from 'oauth4webapi'
import * as client from 'openid-client'

import { failure, task, tell } from './task.mjs'

const { issuer, id, jwk, otherJwk, alg, audience } = task
const algorithm = { RS256: { name: 'RSASSA-PKCS1-v1_5', hash: 'SHA-256' }, ES256: { name: 'ECDSA', namedCurve: 'P-256' } }[alg]
const load = (key) => crypto.subtle.importKey('jwk', JSON.parse(key), algorithm, false, ['sign'])
const [key, other] = [await load(jwk), await load(otherJwk)]
const kid = JSON.parse(jwk).kid
const execute = [client.allowInsecureRequests]
// Both name the issuer unless they are told otherwise.
const told = (library) =>
  audience && {
    [library.modifyAssertion]: (_header, payload) => {
      payload.aud = audience
    },
  }
const discover = (key) =>
  client.discovery(new URL(issuer), id, undefined, client.PrivateKeyJwt(key, told(client)), { execute })

const config = await discover({ key, kid })
const granted = await client.clientCredentialsGrant(config)
const introspected = await client.tokenIntrospection(config, granted.access_token)

const insecure = { [oauth.allowInsecureRequests]: true }
const server = config.serverMetadata()
const response = await oauth.clientCredentialsGrantRequest(
  server,
  { client_id: id },
  oauth.PrivateKeyJwt(key, told(oauth)),
  {},
  insecure,
)
const byOauth4webapi = await oauth.processClientCredentialsResponse(server, { client_id: id }, response)
tell({
  granted,
  again: await client.clientCredentialsGrant(config),
  introspected,
  byOauth4webapi,
  otherKey: await failure(
    async () => client.clientCredentialsGrant(await discover({ key: other, kid })),
    ({ name, status }) => ({ name, status }),
  ),
})
