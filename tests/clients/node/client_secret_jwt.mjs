// openid-client and oauth4webapi: assertions with a MAC of the secret, at the token endpoint and for introspection.

import * as oauth from 'oauth4webapi'
import * as client from 'openid-client'

import { failure, task, tell } from './task.mjs'

const { issuer, id, secret } = task
const execute = [client.allowInsecureRequests]
const discover = (secret) => client.discovery(new URL(issuer), id, undefined, client.ClientSecretJwt(secret), { execute })

const config = await discover(secret)
const granted = await client.clientCredentialsGrant(config)
const server = config.serverMetadata()
const response = await oauth.clientCredentialsGrantRequest(
  server,
  { client_id: id },
  oauth.ClientSecretJwt(secret),
  {},
  { [oauth.allowInsecureRequests]: true },
)
tell({
  granted,
  again: await client.clientCredentialsGrant(config),
  introspected: await client.tokenIntrospection(config, granted.access_token),
  byOauth4webapi: await oauth.processClientCredentialsResponse(server, { client_id: id }, response),
  otherSecret: await failure(
    async () => client.clientCredentialsGrant(await discover(`${secret}x`)),
    ({ name, status }) => ({ name, status }),
  ),
})
