#!/bin/sh
# Prints an access token for the client CLIENT_ID, in exchange for the platform's token in the file PLATFORM_TOKEN_FILE.
# The token goes through files and standard input alone: an argument could be read with `ps`.
set -eu

answer=$(curl --silent --show-error --fail-with-body --retry 4 --retry-connrefused \
    --data-urlencode grant_type=client_credentials \
    --data-urlencode "client_id=$CLIENT_ID" \
    --data-urlencode "client_assertion_type=${ASSERTION_TYPE:-urn:ietf:params:oauth:client-assertion-type:jwt-bearer}" \
    --data-urlencode "client_assertion@$PLATFORM_TOKEN_FILE" \
    ${SCOPE:+--data-urlencode "scope=$SCOPE"} \
    "$TOKEN_URL") || {
    echo "no token: $answer" >&2
    exit 1
}
printf '%s\n' "$answer" | jq --raw-output .access_token
