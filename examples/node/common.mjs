// What both examples share: settings, back-off, errors that say what to do, and the calls that they make to show it all.

import { readFileSync } from 'node:fs'
import { setTimeout as sleep } from 'node:timers/promises'

const { env } = process
export const { TOKEN_URL, ISSUER, API_URL, CLIENT_ID, SCOPE } = env
const CALLS = Number(env.CALLS ?? 1)
const ROUNDS = Number(env.ROUNDS ?? 1)
const PAUSE_SECONDS = Number(env.PAUSE_SECONDS ?? 1)

const TIMEOUT_MS = 10_000
const ATTEMPTS = 5
const WORTH_A_RETRY = new Set([429, 500, 502, 503, 504])
const ADVICE = {
  invalid_client: 'check CLIENT_ID and the secret, or key: it may be wrong, over, or the client disabled',
  invalid_scope: 'ask for less, or have the client granted more',
  unauthorized_client: 'the client was not made for the grant client_credentials',
  server_error: 'the token server cannot answer now, and several attempts did not help',
}

// From a file or the environment; never from an argument, which `ps` shows.
export const readSecret = () =>
  env.CLIENT_SECRET_FILE ? readFileSync(env.CLIENT_SECRET_FILE, 'utf8').trim() : env.CLIENT_SECRET

export class Refused extends Error {
  constructor(code, description) {
    super(`${code}: ${description} (${ADVICE[code] ?? 'see docs/http.md'})`)
  }
}

// Five minutes, or half of a short lifetime.
export const earlySeconds = (expiresIn) => Math.min(300, Math.floor(expiresIn / 2))

// Asks again after 429, 5xx and a broken connection: as Retry-After says, otherwise later each time, and never all at once.
export async function patiently(ask) {
  for (let attempt = 1; ; attempt++) {
    let asked = ''
    try {
      const answer = await ask()
      if (!WORTH_A_RETRY.has(answer.status) || attempt === ATTEMPTS) return answer
      asked = answer.headers.get('retry-after') ?? ''
      await answer.body?.cancel()
    } catch (error) {
      if (attempt === ATTEMPTS) throw error
    }
    await sleep(1000 * (/^\d+$/.test(asked) ? Number(asked) : Math.random() * 0.5 * 2 ** attempt))
  }
}

export const fetchOnce = (url, options) => fetch(url, { ...options, signal: AbortSignal.timeout(TIMEOUT_MS) })
export const fetchPatiently = (url, options) => patiently(() => fetchOnce(url, options))

// What a library of OAuth throws for an answer that is a refusal.
export function refused(error) {
  const told = error.error ? error : { error: error.cause?.[0]?.parameters?.error ?? 'server_error' }
  return new Refused(told.error, told.error_description ?? error.message)
}

// Keeps a token in memory. `request` fetches one: its promise is what is kept, so that all who come meanwhile share it.
export class Token {
  #request
  #kept
  #until = 0

  constructor(request) {
    this.#request = request
  }

  get({ insteadOf } = {}) {
    const isOver = performance.now() >= this.#until
    if (!this.#kept || isOver || (insteadOf && insteadOf === this.#kept)) {
      this.#kept = this.#fetch()
      this.#until = Infinity
    }
    return this.#kept
  }

  async #fetch() {
    try {
      const { access_token: token, expires_in: seconds } = await this.#request()
      this.#until = performance.now() + 1000 * (seconds - earlySeconds(seconds))
      return token
    } catch (error) {
      this.#kept = undefined
      throw error
    }
  }
}

// Calls the API; once more with a fresh token when it does not take the present one.
export async function call(token) {
  const used = token.get()
  const answer = await callWith(await used)
  return answer.status === 401 ? callWith(await token.get({ insteadOf: used })) : answer
}

async function callWith(token) {
  const answer = await fetchPatiently(API_URL, { headers: { Authorization: `Bearer ${token}` } })
  await answer.arrayBuffer()
  return answer
}

// Makes some calls at once, several times, and ends with what the token server said when it refuses. Nothing of it is secret.
export async function main(token) {
  for (let round = 1; round <= ROUNDS; round++) {
    const calls = await Promise.allSettled(Array.from({ length: CALLS }, () => call(token)))
    const failed = calls.find(({ reason }) => reason)
    if (failed) {
      console.error(failed.reason instanceof Refused ? failed.reason.message : failed.reason)
      process.exitCode = 1
      return
    }
    const counts = {}
    for (const { value } of calls) counts[value.status] = (counts[value.status] ?? 0) + 1
    const told = Object.entries(counts).map(([status, count]) => `${count} answered ${status}`)
    console.log(`round ${round}: ${CALLS} calls, ${told.join(', ')}`)
    if (round < ROUNDS) await sleep(1000 * PAUSE_SECONDS)
  }
}
