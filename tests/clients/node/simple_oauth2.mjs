// simple-oauth2: Basic form-encoded ("strict") and raw ("loose"), and credentials in the body.

import { ClientCredentials } from 'simple-oauth2'

import { failure, task, tell } from './task.mjs'

const { issuer, rawId, encodedId, secret } = task

async function fetchToken(id, options, scope, password = secret) {
  const client = new ClientCredentials({ client: { id, secret: password }, auth: { tokenHost: issuer }, options })
  const { expires_at, ...token } = (await client.getToken({ scope })).token
  return token
}

const describe = ({ message, output, data }) => ({ message, status: output.statusCode, payload: data.payload })

tell({
  strict: await fetchToken(encodedId, { credentialsEncodingMode: 'strict' }, ['read', 'write']),
  loose: await fetchToken(rawId, { credentialsEncodingMode: 'loose' }),
  body: await fetchToken(encodedId, { authorizationMethod: 'body' }, 'read'),
  wrongSecret: await failure(() => fetchToken(encodedId, {}, 'read', 'wrong'), describe),
  excessiveScope: await failure(() => fetchToken(encodedId, {}, 'read delete'), describe),
})
