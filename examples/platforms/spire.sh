#!/bin/sh
# On a machine with a SPIRE agent: fetches a JWT-SVID for Tokenhouse, and calls the API.
set -eu
: "${ISSUER:=https://tokens.example.com}" "${SPIFFE_ENDPOINT_SOCKET:=/run/spire/sockets/agent.sock}"

PLATFORM_TOKEN_FILE=$(mktemp)
trap 'rm -f "$PLATFORM_TOKEN_FILE"' EXIT
spire-agent api fetch jwt -audience "$ISSUER" -socketPath "$SPIFFE_ENDPOINT_SOCKET" -output json |
    jq --raw-output --join-output '.[0].svids[0].svid' >"$PLATFORM_TOKEN_FILE"
ASSERTION_TYPE=urn:ietf:params:oauth:client-assertion-type:jwt-spiffe
export PLATFORM_TOKEN_FILE ASSERTION_TYPE
token=$(sh "$(dirname "$0")/token.sh")
printf 'Authorization: Bearer %s' "$token" | curl --silent --show-error --fail --header @- "$API_URL"
