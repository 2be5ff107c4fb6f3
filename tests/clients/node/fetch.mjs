// Node's own fetch: no library at all.

import { task, tell } from './task.mjs'

const { tokenUrl, jwksUrl, id, secret } = task
const authorization = (password) => ({ authorization: `Basic ${btoa(`${id}:${password}`)}` })
const form = (more = {}) => new URLSearchParams({ grant_type: 'client_credentials', ...more })

async function post(body, headers = {}) {
  const response = await fetch(tokenUrl, { method: 'POST', body, headers })
  return {
    status: response.status,
    contentType: response.headers.get('content-type'),
    cacheControl: response.headers.get('cache-control'),
    challenge: response.headers.get('www-authenticate'),
    body: await response.json(),
  }
}

// A body of unknown length, which fetch sends chunked.
function* stream() {
  yield new TextEncoder().encode('grant_type=client_')
  yield new TextEncoder().encode('credentials&scope=read%20write')
}

const streamed = await fetch(tokenUrl, {
  method: 'POST',
  body: ReadableStream.from(stream()),
  duplex: 'half',
  headers: { ...authorization(secret), 'content-type': 'application/x-www-form-urlencoded' },
})
const keys = await fetch(jwksUrl)
tell({
  basic: await post(form(), authorization(secret)),
  body: await post(form({ client_id: id, client_secret: secret })),
  streamed: await streamed.json(),
  wrongSecret: await post(form(), authorization('wrong')),
  keys: {
    status: keys.status,
    origin: keys.headers.get('access-control-allow-origin'),
    body: await keys.json(),
  },
})
