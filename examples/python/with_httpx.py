"""Many calls at once in one thread: httpx. It has no OAuth client of its own, so the one that keeps a token is here."""

import asyncio
import random
import time
from collections.abc import AsyncGenerator

import httpx

from common import (
    API_URL,
    ATTEMPTS,
    CALLS,
    CLIENT_ID,
    PAUSE_SECONDS,
    ROUNDS,
    SCOPE,
    TOKEN_URL,
    WORTH_A_RETRY,
    early_seconds,
    give_up,
    read_secret,
    report,
)


class Refused(Exception):
    """The token server gave no token."""


class Retrying(httpx.AsyncHTTPTransport):
    """Asks again after 429, 5xx and a broken connection: as Retry-After says, else later each time, at random."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request, and again."""
        attempt = 0
        while True:
            attempt += 1
            asked = ""
            try:
                answer = await super().handle_async_request(request)
            except httpx.TransportError:
                # A connection that breaks, or takes too long.
                if attempt == ATTEMPTS:
                    raise
            else:
                if answer.status_code not in WORTH_A_RETRY or attempt == ATTEMPTS:
                    return answer
                asked = answer.headers.get("Retry-After", "")
                await answer.aclose()
            await asyncio.sleep(int(asked) if asked.isdigit() else random.uniform(0, 0.5 * 2**attempt))


class Token(httpx.Auth):
    """Keeps a token in memory for all tasks, and gives it to each request; once more with a fresh one after 401."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self._client = client
        self._token = ""
        self._until = 0.0
        self._fetching = asyncio.Lock()

    async def async_auth_flow(self, request: httpx.Request) -> AsyncGenerator[httpx.Request, httpx.Response]:
        """What httpx runs for each request."""
        used = await self._get()
        request.headers["Authorization"] = f"Bearer {used}"
        answer = yield request
        if answer.status_code == 401:
            request.headers["Authorization"] = f"Bearer {await self._get(instead_of=used)}"
            yield request

    async def _get(self, instead_of: str | None = None) -> str:
        async with self._fetching:
            if time.monotonic() >= self._until or self._token == instead_of:
                await self._fetch()
            return self._token

    async def _fetch(self) -> None:
        form = {"grant_type": "client_credentials"} | ({"scope": SCOPE} if SCOPE else {})
        # httpx sends id and secret as they are; where they hold anything but letters, digits and -._~ quote them first.
        answer = await self._client.post(TOKEN_URL, data=form, auth=(CLIENT_ID, read_secret()))
        told = answer.json()
        if answer.status_code != 200:
            raise Refused(told["error"], told.get("error_description", ""))
        self._token = told["access_token"]
        self._until = time.monotonic() + told["expires_in"] - early_seconds(told["expires_in"])


async def main() -> None:
    """Make some calls at once, several times."""
    transport = Retrying(limits=httpx.Limits(max_connections=100))
    async with httpx.AsyncClient(transport=transport, timeout=httpx.Timeout(10, pool=60)) as client:
        token = Token(client)
        for number in range(1, ROUNDS + 1):
            try:
                answers = await asyncio.gather(*(client.get(API_URL, auth=token) for _ in range(CALLS)))
            except Refused as error:
                give_up(*error.args)
            report(number, [answer.status_code for answer in answers])
            if number < ROUNDS:
                await asyncio.sleep(PAUSE_SECONDS)


if __name__ == "__main__":
    asyncio.run(main())
