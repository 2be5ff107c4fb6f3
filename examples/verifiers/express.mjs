// An API in Express that accepts sender-constrained tokens, and terminates TLS itself. jose verifies signatures and claims;
// this program checks RFC 9449 section 4.3 and RFC 8705 section 3.

import { createHash } from 'node:crypto'
import { readFileSync } from 'node:fs'
import { createServer } from 'node:https'

import express from 'express'
import { calculateJwkThumbprint, createRemoteJWKSet, EmbeddedJWK, jwtVerify } from 'jose'

const { ISSUER, AUDIENCE = ISSUER, API_URL, JWKS_URL = `${ISSUER}/.well-known/jwks.json`, PORT, TLS_CERT, TLS_KEY } = process.env
const ALGORITHMS = ['RS256', 'PS256', 'ES256', 'EdDSA', 'Ed25519']
const PROOF_SECONDS = 120
const keys = createRemoteJWKSet(new URL(JWKS_URL))
const used = new Map()

class Refused extends Error {}

function demand(isSo, why) {
  if (!isSo) throw new Refused(why)
}

const digest = (data) => createHash('sha256').update(data).digest('base64url')

async function verifyToken(req) {
  const [, scheme, token] = /^(\S+) (\S+)$/.exec(req.headers.authorization ?? '') ?? []
  const options = { issuer: ISSUER, audience: AUDIENCE, typ: 'at+jwt', algorithms: ALGORITHMS, clockTolerance: 60 }
  const { payload: claims } = await jwtVerify(token ?? '', keys, options)
  // Refuse members of cnf that this program cannot check.
  const { jkt, 'x5t#S256': x5t, ...unknown } = claims.cnf ?? {}
  demand(Object.keys(unknown).length === 0, 'cnf has members that are not known here')
  demand(scheme.toLowerCase() === (jkt ? 'dpop' : 'bearer'), 'the token is presented in another way')
  if (jkt) demand((await verifyProof(req, token)) === jkt, 'the proof is of another key')
  if (x5t) demand(digest(req.socket.getPeerCertificate().raw ?? '') === x5t, 'the certificate is another one')
  return claims
}

// The thumbprint of the proof's key.
async function verifyProof(req, token) {
  const options = { typ: 'dpop+jwt', algorithms: ALGORITHMS, maxTokenAge: PROOF_SECONDS, clockTolerance: 60 }
  const { payload: proof, protectedHeader } = await jwtVerify(req.headers.dpop ?? '', EmbeddedJWK, options)
  // API_URL is the URL that clients use. Never take it from the Host header.
  demand(proof.htm === req.method && proof.htu?.split(/[?#]/)[0] === API_URL + req.path, 'the proof is for another request')
  demand(proof.ath === digest(token), 'the proof is for another token')
  const thumbprint = await calculateJwkThumbprint(protectedHeader.jwk)
  demand(proof.jti && useOnce(`${thumbprint} ${proof.jti}`), 'the proof was used before')
  return thumbprint
}

// Each process has its own memory. If there are several, share it: Redis has SET NX EX.
function useOnce(id) {
  const now = performance.now()
  for (const [old, end] of used) if (end < now) used.delete(old)
  if (used.has(id)) return false
  return used.set(id, now + 2000 * (PROOF_SECONDS + 60)) && true
}

function requireToken(req, res, next) {
  verifyToken(req).then(
    (claims) => {
      req.claims = claims
      next()
    },
    () => res.status(401).set('WWW-Authenticate', 'Bearer error="invalid_token", DPoP error="invalid_token"').end(),
  )
}

const app = express()
app.get('/things', requireToken, (req, res) => res.json({ caller: req.claims.client_id }))
const tls = { key: readFileSync(TLS_KEY), cert: readFileSync(TLS_CERT), requestCert: true, rejectUnauthorized: false }
createServer(tls, app).listen(Number(PORT), '127.0.0.1')
