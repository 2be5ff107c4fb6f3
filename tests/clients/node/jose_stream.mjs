// Verifies a token of each line with one set of keys, which is fetched when it is older than max-age and never before.
import { createInterface } from 'node:readline'
import { createRemoteJWKSet, jwtVerify } from 'jose'

const [jwksUri, issuer, maxAgeSeconds] = process.argv.slice(2)
const keys = createRemoteJWKSet(new URL(jwksUri), { cacheMaxAge: maxAgeSeconds * 1000, cooldownDuration: 2 ** 31 })

for await (const token of createInterface({ input: process.stdin })) {
  try {
    await jwtVerify(token, keys, { issuer, audience: issuer, typ: 'at+jwt', algorithms: ['RS256'] })
    console.log('verified')
  } catch (error) {
    console.log(error.code)
  }
}
