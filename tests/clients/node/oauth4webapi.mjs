// oauth4webapi: discovery, Basic and body, and the resource server's side, which validates a token as RFC 9068 says.

import * as oauth from 'oauth4webapi'

import { failure, task, tell } from './task.mjs'

const { issuer, audience, id, secret } = task
const insecure = { [oauth.allowInsecureRequests]: true }
const url = new URL(issuer)
const client = { client_id: id }

async function discover(algorithm) {
  const response = await oauth.discoveryRequest(url, { algorithm, ...insecure })
  return oauth.processDiscoveryResponse(url, response)
}

const server = await discover('oauth2')

async function fetchToken(authentication, parameters = {}) {
  const response = await oauth.clientCredentialsGrantRequest(server, client, authentication, parameters, insecure)
  return oauth.processClientCredentialsResponse(server, client, response)
}

function validate(accessToken, expectedAudience) {
  const request = new Request(audience, { headers: { authorization: `Bearer ${accessToken}` } })
  return oauth.validateJwtAccessToken(server, request, expectedAudience, insecure)
}

const describe = ({ name, code, status, cause, error, error_description }) => ({
  name,
  code,
  status,
  challenges: cause?.map?.(({ scheme, parameters }) => ({ scheme, parameters })),
  error,
  error_description,
})

const basic = await fetchToken(oauth.ClientSecretBasic(secret), { scope: 'read write' })
tell({
  oidcIsTheSame: JSON.stringify(await discover('oidc')) === JSON.stringify(server),
  basic,
  body: await fetchToken(oauth.ClientSecretPost(secret), { scope: 'read' }),
  claims: await validate(basic.access_token, audience),
  wrongAudience: await failure(() => validate(basic.access_token, issuer), describe),
  wrongSecret: await failure(() => fetchToken(oauth.ClientSecretBasic('wrong')), describe),
  excessiveScope: await failure(() => fetchToken(oauth.ClientSecretPost(secret), { scope: 'read delete' }), describe),
})
