// jsonwebtoken with the keys from jwks-rsa, as Express APIs verify.

import { promisify } from 'node:util'

import jwt from 'jsonwebtoken'
import jwksClient from 'jwks-rsa'

import { failure, task, tell } from './task.mjs'

const { issuer, audience, jwksUrl, accessToken, forgedToken } = task
const keys = jwksClient({ jwksUri: jwksUrl, cache: true, rateLimit: true })
const findKey = ({ kid }, done) => {
  keys.getSigningKey(kid).then((key) => done(null, key.getPublicKey()), done)
}
const strict = { issuer, audience, algorithms: ['RS256'], complete: true }
const check = promisify(jwt.verify)
const verify = (token, options = {}) => check(token, findKey, { ...strict, ...options })
const describe = ({ name, message }) => ({ name, message })
const refusal = (token, options) => failure(() => verify(token, options), describe)

const { payload, header } = await verify(accessToken)
tell({
  payload,
  header,
  again: (await verify(accessToken)).payload.jti === payload.jti,
  wrongAudience: await refusal(accessToken, { audience: issuer }),
  wrongIssuer: await refusal(accessToken, { issuer: `${issuer}/` }),
  afterwards: (await refusal(accessToken, { clockTimestamp: payload.exp + 1 })).name,
  forged: await refusal(forgedToken),
  unknownKey: await failure(() => keys.getSigningKey('another'), describe),
})
