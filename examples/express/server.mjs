// A backend that verifies its callers' tokens in an Express middleware, and calls another API with its own.

import express from 'express'
import { createRemoteJWKSet, errors, jwtVerify } from 'jose'
import { Counter, register } from 'prom-client'

import { Session, TokenError } from './tokens.mjs'

for (const name of ['ISSUER', 'TOKEN_URL', 'CLIENT_ID', 'API_URL']) {
  if (!process.env[name]) {
    console.error(`${name} must be set`)
    process.exit(2)
  }
}
const { ISSUER, AUDIENCE = ISSUER, API_URL, PORT = 8000, HOST = '127.0.0.1' } = process.env

const log = (level, text, more = {}) => console.error(JSON.stringify({ time: new Date(), level, text, ...more }))
// Keys are kept for ten minutes. One that is not among them is looked for at once, at most every 30 s: garbage is cheap.
const keys = createRemoteJWKSet(new URL(`${ISSUER}/.well-known/jwks.json`), { timeoutDuration: 5000 })
const session = new Session()
const served = new Counter({ name: 'served_requests_total', help: 'Requests answered.', labelNames: ['status'] })

// RFC 9068 section 4. The algorithm is ours to choose, never the token's.
const RULES = {
  algorithms: ['RS256'],
  issuer: ISSUER,
  audience: AUDIENCE,
  typ: 'at+jwt',
  clockTolerance: 30,
  requiredClaims: ['exp', 'iat', 'sub', 'client_id', 'jti'],
}

const OURS = new Set(['ERR_JWKS_TIMEOUT', 'ERR_JWKS_INVALID', 'ERR_JOSE_GENERIC'])

// Lets in callers whose token holds a scope; `request.claims` are the token's.
export const requires = (scope) => async (request, response, next) => {
  const refuse = (status, challenge, error) => {
    log('info', 'refused', { status, error })
    response.status(status).set('WWW-Authenticate', challenge).json({ error })
  }
  const [, token] = /^Bearer +(\S+)$/i.exec(request.get('authorization') ?? '') ?? []
  if (!token) return refuse(401, 'Bearer', 'no_token')
  try {
    const { payload } = await jwtVerify(token, keys, RULES)
    request.claims = payload
  } catch (error) {
    // Ours is the fault when the keys cannot be had, the caller's all else.
    if (!(error instanceof errors.JOSEError) || OURS.has(error.code)) throw error
    return refuse(401, 'Bearer error="invalid_token"', 'invalid_token')
  }
  const scopes = String(request.claims.scope ?? '').split(' ')
  if (!scopes.includes(scope)) {
    return refuse(403, `Bearer error="insufficient_scope", scope="${scope}"`, 'insufficient_scope')
  }
  next()
}

const app = express().disable('x-powered-by')

app.use((request, response, next) => {
  response.on('finish', () => served.inc({ status: response.statusCode }))
  next()
})

// What another API says, fetched with our own token: the caller's is for us alone.
app.get('/orders', requires('things:read'), async (request, response) => {
  const answer = await session.fetch(API_URL)
  if (!answer.ok) {
    await answer.body?.cancel()
    log('error', 'the API answered', { status: answer.status, caller: request.claims.client_id })
    return response.status(502).json({ error: 'bad_gateway' })
  }
  response.json({ caller: request.claims.client_id, things: await answer.json() })
})

// Alive. Others' health is not ours: a restart would not mend them.
app.get('/healthz', (request, response) => response.json({ status: 'ok' }))

// Where only the metrics system gets to it: see the README.
app.get('/metrics', async (request, response) => response.type(register.contentType).send(await register.metrics()))

app.use((request, response) => response.status(404).json({ error: 'not_found' }))

// Our credentials are our operator's matter: the log says what to do, the caller hears only that it may come again.
app.use((error, request, response, next) => {
  log('error', error instanceof TokenError ? error.message : error.name, { code: error.cause?.code ?? error.code })
  if (response.headersSent) return next(error)
  response.status(503).set('Retry-After', '30').json({ error: 'temporarily_unavailable' })
})

const server = app.listen(PORT, HOST, () => log('info', 'listening', { host: HOST, port: PORT }))
server.on('error', (error) => {
  log('error', error.message)
  process.exit(1)
})
// What was begun is answered.
for (const signal of ['SIGTERM', 'SIGINT']) process.once(signal, () => server.close())
