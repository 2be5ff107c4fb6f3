#!/usr/bin/env bash
# Calls an API with a token that is kept in a file, for cron and for scripts. README.md says what to set.
set -euo pipefail
: "${TOKEN_URL:?}" "${CLIENT_ID:?}" "${API_URL:?}"
cache=${TOKEN_FILE:-${XDG_CACHE_HOME:-$HOME/.cache}/tokens/$CLIENT_ID}
umask 077
mkdir -p "$(dirname "$cache")"

# The file holds until when the token is used, and the token.
cached_token() {
    local until token
    read -r until token 2>/dev/null <"$cache" && [ "$until" -gt "$(date +%s)" ] && printf '%s' "$token"
}

fetch_token() {
    local secret answer token lifetime early
    secret=${CLIENT_SECRET:-$(cat "${CLIENT_SECRET_FILE:?CLIENT_SECRET or CLIENT_SECRET_FILE must be set}")}
    # Through a pipe: an argument would be seen by everybody who runs `ps`. --retry waits as long as Retry-After says.
    answer=$(printf 'user = "%s:%s"\n' "$CLIENT_ID" "$secret" | curl --config - --silent --show-error --max-time 60 --retry 4 --retry-all-errors \
        --data grant_type=client_credentials ${SCOPE:+--data-urlencode "scope=$SCOPE"} "$TOKEN_URL")
    token=$(printf '%s' "$answer" | sed -n 's/.*"access_token": *"\([^"]*\)".*/\1/p')
    if [ -z "$token" ]; then
        printf '%s\n' "$answer" >&2
        return 1
    fi
    lifetime=$(printf '%s' "$answer" | sed -n 's/.*"expires_in": *\([0-9]*\).*/\1/p')
    # Five minutes early, or at half of a short lifetime.
    early=$((lifetime / 2 < 300 ? lifetime / 2 : 300))
    # Whole or not at all, for whoever reads it meanwhile.
    printf '%s %s\n' "$(($(date +%s) + lifetime - early))" "$token" >"$cache.$$"
    mv "$cache.$$" "$cache"
    printf '%s' "$token"
}

# Of many that find no token at once, one fetches it and the others read it: the lock is held while that lasts.
token() {
    local token
    if token=$(cached_token); then
        printf '%s' "$token"
        return
    fi
    (
        flock 9
        cached_token || fetch_token
    ) 9>"$cache.lock"
}

# The status is the last line, the body what comes before.
call() {
    printf 'header = "Authorization: Bearer %s"\n' "$1" |
        curl --config - --silent --show-error --max-time 60 --retry 4 --retry-all-errors --write-out '\n%{http_code}\n' "$API_URL"
}

used=$(token)
answer=$(call "$used")
if [ "${answer##*$'\n'}" = 401 ]; then
    # The API does not take it any more: once with a fresh one, unless another has fetched that already.
    [ "$(cached_token || true)" != "$used" ] || rm -f "$cache"
    answer=$(call "$(token)")
fi
printf '%s\n' "${answer%$'\n'*}"
case ${answer##*$'\n'} in
2*) ;;
*)
    printf 'the API answered %s\n' "${answer##*$'\n'}" >&2
    exit 1
    ;;
esac
