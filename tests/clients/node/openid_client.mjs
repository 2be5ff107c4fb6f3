// openid-client: discovery by both documents; Basic (form-encoded, to the last hyphen) and credentials in the body.

import * as client from 'openid-client'

import { failure, task, tell } from './task.mjs'

const { issuer, id, secret } = task
const { ClientSecretBasic, ClientSecretPost } = client
const execute = [client.allowInsecureRequests]
const discover = (authentication, algorithm = 'oidc') =>
  client.discovery(new URL(issuer), id, undefined, authentication, { execute, algorithm })
const describe = ({ name, code, status, cause, error }) => ({
  name,
  code,
  status,
  cause: cause?.map?.(({ scheme, parameters }) => ({ scheme, parameters })),
  error,
})

const basic = await discover(ClientSecretBasic(secret))
const body = await discover(ClientSecretPost(secret), 'oauth2')
const wrong = await discover(ClientSecretBasic('wrong'))
tell({
  oidc: basic.serverMetadata(),
  oauth2: body.serverMetadata(),
  basic: await client.clientCredentialsGrant(basic, { scope: 'write read' }),
  body: await client.clientCredentialsGrant(body),
  wrongSecret: await failure(() => client.clientCredentialsGrant(wrong), describe),
  excessiveScope: await failure(() => client.clientCredentialsGrant(basic, { scope: 'read delete' }), describe),
})
