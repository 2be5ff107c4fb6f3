// Calls an API with nothing but Node: fetch has no OAuth client, so the one that keeps a token is in common.mjs.

import { CLIENT_ID, Refused, SCOPE, TOKEN_URL, Token, fetchPatiently, main, readSecret } from './common.mjs'

async function requestToken() {
  const body = new URLSearchParams({ grant_type: 'client_credentials', ...(SCOPE && { scope: SCOPE }) })
  // RFC 6749 section 2.3.1: form-encoded first, then base64.
  const credentials = [CLIENT_ID, readSecret()].map(encodeURIComponent).join(':')
  const headers = { Authorization: `Basic ${Buffer.from(credentials).toString('base64')}` }
  const answer = await fetchPatiently(TOKEN_URL, { method: 'POST', headers, body })
  const told = await answer.json()
  if (!answer.ok) throw new Refused(told.error, told.error_description)
  return told
}

await main(new Token(requestToken))
