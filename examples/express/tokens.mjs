// Calls to APIs with a token that is kept, replaced in time, and fetched once for all who wait; counted and timed.
// Node's fetch makes the calls, prom-client counts. fetch has no OAuth client: the one that keeps a token is here.

import { readFileSync } from 'node:fs'
import { setTimeout as sleep } from 'node:timers/promises'

import { Histogram } from 'prom-client'

const TIMEOUT_MS = 10_000
const ATTEMPTS = 5
const LONGEST_WAIT_SECONDS = 60
const WORTH_A_RETRY = new Set([429, 500, 502, 503, 504])

// Its _count is how many requests there were, of which outcome="ok" went well; _sum and the buckets are the latency.
const requests = new Histogram({
  name: 'outbound_request_duration_seconds',
  help: "Requests made, with their repetitions; outcome is ok, a status, the token server's error, or unreachable.",
  labelNames: ['target', 'outcome'],
})

// There is no token. `code` is what the token server said (RFC 6749 section 5.2); nothing here is secret.
export class TokenError extends Error {
  static advice = 'see docs/http.md'

  constructor(code, description) {
    super(`${code}: ${description} (${new.target.advice})`)
    this.code = code
  }
}

export class CredentialsRefused extends TokenError {
  static advice = 'check CLIENT_ID and the secret: it may be wrong, over, or the client disabled'
}

// The description names the scope.
export class ScopeRefused extends TokenError {
  static advice = 'ask for less, or have the client granted more'
}

export class GrantRefused extends TokenError {
  static advice = 'the client was not made for the grant client_credentials'
}

// Repeated already, in vain.
export class ServerUnavailable extends TokenError {
  static advice = 'the token server cannot answer now, and several attempts did not help'
}

const ERRORS = {
  invalid_client: CredentialsRefused,
  invalid_scope: ScopeRefused,
  unauthorized_client: GrantRefused,
  server_error: ServerUnavailable,
  temporarily_unavailable: ServerUnavailable,
}

// From a file or the environment at each fetch, so that a secret that was rotated is taken.
function readSecret({ CLIENT_SECRET_FILE, CLIENT_SECRET }) {
  try {
    const secret = CLIENT_SECRET_FILE ? readFileSync(CLIENT_SECRET_FILE, 'utf8').trim() : CLIENT_SECRET
    if (secret) return secret
  } catch (error) {
    throw new CredentialsRefused('no_secret', `${CLIENT_SECRET_FILE}: ${error.code}`)
  }
  throw new CredentialsRefused('no_secret', 'Neither CLIENT_SECRET_FILE nor CLIENT_SECRET is set, or it is empty.')
}

// As Retry-After says after 429 and 503, otherwise longer each time and never all at once.
async function fetchPatiently(url, options, mayRepeat) {
  for (let attempt = 1; ; attempt++) {
    const isLast = !mayRepeat || attempt === ATTEMPTS
    let asked = ''
    try {
      const answer = await fetch(url, { ...options, signal: AbortSignal.timeout(TIMEOUT_MS) })
      if (isLast || !WORTH_A_RETRY.has(answer.status)) return answer
      asked = answer.headers.get('retry-after') ?? ''
      await answer.body?.cancel()
    } catch (error) {
      if (isLast) throw error
    }
    const seconds = /^\d+$/.test(asked) ? Number(asked) : Math.random() * 0.5 * 2 ** attempt
    await sleep(1000 * Math.min(seconds, LONGEST_WAIT_SECONDS))
  }
}

export class Session {
  #account
  #token // a promise: all who come while it is fetched wait for the same
  #until = 0

  constructor(account = process.env) {
    this.#account = account
  }

  // Calls an API; once more with a fresh token when it does not take the present one. Throws TokenError.
  async fetch(url, options = {}) {
    const end = requests.startTimer({ target: 'api' })
    let outcome = 'unreachable'
    try {
      const used = this.#goodToken()
      let answer = await this.#call(url, options, await used)
      if (answer.status === 401) {
        await answer.body?.cancel()
        answer = await this.#call(url, options, await this.#goodToken(used))
      }
      outcome = answer.ok ? 'ok' : String(answer.status)
      return answer
    } catch (error) {
      if (error instanceof TokenError) outcome = 'no_token'
      throw error
    } finally {
      end({ outcome })
    }
  }

  #call(url, options, token) {
    const headers = { ...Object.fromEntries(new Headers(options.headers)), authorization: `Bearer ${token}` }
    const mayRepeat = ['GET', 'HEAD', 'PUT', 'DELETE'].includes((options.method ?? 'GET').toUpperCase())
    return fetchPatiently(url, { ...options, headers }, mayRepeat)
  }

  #goodToken(insteadOf) {
    const isOld = performance.now() >= this.#until
    if (!this.#token || isOld || this.#token === insteadOf) {
      this.#until = Infinity
      this.#token = this.#request()
    }
    return this.#token
  }

  async #request() {
    const end = requests.startTimer({ target: 'token' })
    let outcome = 'unreachable'
    try {
      const { access_token: token, expires_in: seconds } = await this.#ask()
      // Five minutes early, or at half of a lifetime under ten minutes.
      this.#until = performance.now() + 1000 * (seconds - Math.min(300, Math.floor(seconds / 2)))
      outcome = 'ok'
      return token
    } catch (error) {
      this.#token = undefined
      if (!(error instanceof TokenError)) throw new ServerUnavailable('unreachable', error.cause?.code ?? error.name)
      outcome = error.code
      throw error
    } finally {
      end({ outcome })
    }
  }

  async #ask() {
    const { TOKEN_URL, CLIENT_ID, SCOPE } = this.#account
    const body = new URLSearchParams({ grant_type: 'client_credentials', ...(SCOPE && { scope: SCOPE }) })
    // RFC 6749 section 2.3.1: form-encoded first, then base64.
    const credentials = [CLIENT_ID, readSecret(this.#account)].map(encodeURIComponent).join(':')
    const headers = { authorization: `Basic ${Buffer.from(credentials).toString('base64')}` }
    const answer = await fetchPatiently(TOKEN_URL, { method: 'POST', headers, body }, true)
    const told = await answer.json().catch(() => ({}))
    if (answer.ok) return told
    const code = told.error ?? 'server_error'
    throw new (ERRORS[code] ?? TokenError)(code, told.error_description ?? `status ${answer.status}`)
  }
}
