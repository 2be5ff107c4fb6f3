// openid-client: introspection, plain and signed, and revocation, by Basic and by the body.

import * as client from 'openid-client'

import { failure, task, tell } from './task.mjs'

const { issuer, id, secret, readerId, readerSecret, token } = task
const { ClientSecretBasic, ClientSecretPost } = client
const execute = [client.allowInsecureRequests]
const discover = (id, metadata, authentication) =>
  client.discovery(new URL(issuer), id, metadata, authentication, { execute })

const owner = await discover(id, undefined, ClientSecretPost(secret))
const reader = await discover(readerId, undefined, ClientSecretBasic(readerSecret))
const strict = await discover(
  readerId,
  { introspection_signed_response_alg: 'RS256' },
  ClientSecretBasic(readerSecret),
)
const wrong = await discover(readerId, undefined, ClientSecretBasic('wrong'))
const look = async () => [
  await client.tokenIntrospection(owner, token, { token_type_hint: 'access_token' }),
  await client.tokenIntrospection(reader, token),
  await client.tokenIntrospection(strict, token),
]
const before = await look()
const refused = await failure(
  () => client.tokenRevocation(reader, token),
  ({ error, status }) => ({ error, status }),
)
const leftAlone = await look()
await client.tokenRevocation(owner, token, { token_type_hint: 'access_token' })
await client.tokenRevocation(owner, token)
await client.tokenRevocation(owner, 'unknown')
tell({
  before,
  refused,
  leftAlone,
  after: await look(),
  wrongSecret: await failure(
    () => client.tokenIntrospection(wrong, token),
    ({ name, status }) => ({ name, status }),
  ),
})
