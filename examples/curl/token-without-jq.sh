#!/bin/sh
# Prints an access token. Needs nothing but curl and sed. README.md says what to set.
set -eu
: "${TOKEN_URL:?}" "${CLIENT_ID:?}"
secret=${CLIENT_SECRET:-$(cat "${CLIENT_SECRET_FILE:?CLIENT_SECRET or CLIENT_SECRET_FILE must be set}")}

# The secret goes through a pipe: an argument would be seen by everybody who runs `ps`.
answer=$(printf 'user = "%s:%s"\n' "$CLIENT_ID" "$secret" | curl --config - --silent --show-error --max-time 60 --retry 4 --retry-all-errors \
    --data grant_type=client_credentials ${SCOPE:+--data-urlencode "scope=$SCOPE"} "$TOKEN_URL")
# A token has no character that JSON escapes.
token=$(printf '%s' "$answer" | sed -n 's/.*"access_token": *"\([^"]*\)".*/\1/p')
if [ -z "$token" ]; then
    # An error's answer holds no secret.
    printf '%s\n' "$answer" >&2
    exit 1
fi
printf '%s\n' "$token"
