// jose: the lines of the README, strict about everything that RFC 9068 asks a verifier to look at.

import { createRemoteJWKSet, jwtVerify } from 'jose'

import { failure, task, tell } from './task.mjs'

const { issuer, audience, jwksUrl, accessToken, forgedToken } = task
const keys = createRemoteJWKSet(new URL(jwksUrl))
const strict = {
  issuer,
  audience,
  typ: 'at+jwt',
  algorithms: ['RS256'],
  requiredClaims: ['sub', 'client_id', 'iat', 'exp', 'jti', 'scope'],
}
const verify = (token, options = {}) => jwtVerify(token, keys, { ...strict, ...options })
const describe = ({ code, claim, reason }) => ({ code, claim, reason })
const refusal = (token, options) => failure(() => verify(token, options), describe)

const { payload, protectedHeader } = await verify(accessToken)
tell({
  payload,
  protectedHeader,
  again: (await verify(accessToken)).payload.jti === payload.jti,
  wrongAudience: await refusal(accessToken, { audience: issuer }),
  wrongIssuer: await refusal(accessToken, { issuer: `${issuer}/` }),
  wrongType: await refusal(accessToken, { typ: 'jwt' }),
  missingClaim: await refusal(accessToken, { requiredClaims: ['nbf'] }),
  afterwards: await refusal(accessToken, { currentDate: new Date((payload.exp + 1) * 1000) }),
  forged: await refusal(forgedToken),
})
