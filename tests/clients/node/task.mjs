// What every program here shares: a task comes as JSON on standard input, one JSON object goes to standard output.

import { readFileSync } from 'node:fs'

export const task = JSON.parse(readFileSync(0, 'utf8'))

export function tell(findings) {
  process.stdout.write(JSON.stringify(findings))
}

// What `attempt` failed with, as `describe` sees it; a success is told as such.
export async function failure(attempt, describe) {
  try {
    return { succeeded: await attempt() }
  } catch (error) {
    return describe(error)
  }
}
