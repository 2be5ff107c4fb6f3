#!/usr/bin/env bash
# Prints an access token. Needs curl and jq. README.md says what to set.
set -euo pipefail
: "${TOKEN_URL:?}" "${CLIENT_ID:?}"
secret=${CLIENT_SECRET:-$(cat "${CLIENT_SECRET_FILE:?CLIENT_SECRET or CLIENT_SECRET_FILE must be set}")}

# The secret goes through a pipe: an argument would be seen by everybody who runs `ps`. --retry waits as long as Retry-After says
# after 429 and 503, and longer each time otherwise.
answer=$(printf 'user = "%s:%s"\n' "$CLIENT_ID" "$secret" | curl --config - --silent --show-error --max-time 60 --retry 4 --retry-all-errors \
    --data grant_type=client_credentials ${SCOPE:+--data-urlencode "scope=$SCOPE"} "$TOKEN_URL")
jq --exit-status --raw-output '.access_token // empty' <<<"$answer" || {
    jq --raw-output '"\(.error): \(.error_description)"' <<<"$answer" >&2
    exit 1
}
