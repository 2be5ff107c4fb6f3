"""Three rotations and a revocation while callers ask without a pause and verifiers keep the JWKS for all of max-age."""

import queue
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import jwt
import requests
from joserfc import jwt as joserfc_jwt
from joserfc.errors import JoseError
from joserfc.jwk import KeySet
from support.server import NewClient, RunningServer, running_server, wait_until

MAX_AGE_SECONDS = 1
ROTATIONS = 3
CALLERS = 3
PAUSE_SECONDS = 0.01
NODE = Path(__file__).with_name("node")

Verify = Callable[[str], str]
"""Tells ``verified``, or what is wrong."""


class PatientJwkClient(jwt.PyJWKClient):
    """PyJWT's own, and it notes each fetch that came before the last one's copy had run out."""

    def __init__(self, uri: str) -> None:
        super().__init__(uri, cache_jwk_set=True, lifespan=MAX_AGE_SECONDS)
        self.fetched_at = 0.0
        self.early = 0

    def fetch_data(self) -> Any:
        now = time.monotonic()
        self.early += now < self.fetched_at + MAX_AGE_SECONDS
        self.fetched_at = now
        return super().fetch_data()


def with_pyjwt(server: RunningServer) -> Iterator[Verify]:
    keys = PatientJwkClient(f"{server.url}/.well-known/jwks.json")
    issuer = server.settings.issuer

    def verify(token: str) -> str:
        try:
            key = keys.get_signing_key_from_jwt(token)
            jwt.decode(token, key, algorithms=["RS256"], issuer=issuer, audience=issuer)
        except jwt.PyJWTError as error:
            return repr(error)
        return "verified"

    yield verify
    assert keys.early <= 1, "more than for the revoked key"


def with_joserfc(server: RunningServer) -> Iterator[Verify]:
    """What Authlib's own JOSE has become."""
    kept: dict[str, Any] = {"until": 0.0}

    def verify(token: str) -> str:
        if time.monotonic() >= kept["until"]:
            answer = requests.get(f"{server.url}/.well-known/jwks.json", timeout=10)
            assert answer.headers["Cache-Control"] == f"public, max-age={MAX_AGE_SECONDS}"
            kept.update(until=time.monotonic() + MAX_AGE_SECONDS, keys=KeySet.import_key_set(answer.json()))
        try:
            claims = joserfc_jwt.decode(token, kept["keys"], algorithms=["RS256"]).claims
            joserfc_jwt.JWTClaimsRegistry(iss={"value": server.settings.issuer}).validate(claims)
        except (JoseError, ValueError) as error:
            return repr(error)
        return "verified"

    yield verify


def with_jose(server: RunningServer) -> Iterator[Verify]:
    process = subprocess.Popen(
        ["node", NODE / "jose_stream.mjs", f"{server.url}/.well-known/jwks.json", server.settings.issuer,
         str(MAX_AGE_SECONDS)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdin
    assert process.stdout

    def verify(token: str) -> str:
        assert process.stdin
        assert process.stdout
        process.stdin.write(f"{token}\n")
        process.stdin.flush()
        return process.stdout.readline().strip()

    try:
        yield verify
    finally:
        process.stdin.close()
        process.stdout.close()
        process.wait(10)


VERIFIERS = {"PyJWT": with_pyjwt, "joserfc": with_joserfc} | ({"jose": with_jose} if shutil.which("node") else {})


class Load:
    """Callers that ask without a pause, and what each verifier says of each of their tokens."""

    def __init__(self, server: RunningServer, client: NewClient) -> None:
        self.server = server
        self.client = client
        self.statuses: list[int] = []
        self.told: dict[str, list[tuple[str, str]]] = {name: [] for name in VERIFIERS}
        self.last_kid = ""
        self._done = threading.Event()
        self._queues: dict[str, queue.Queue[str | None]] = {name: queue.Queue() for name in VERIFIERS}

    @contextmanager
    def running(self) -> Iterator[None]:
        with ExitStack() as stack:
            verifiers = [
                threading.Thread(
                    target=self._verify, args=(name, stack.enter_context(contextmanager(make)(self.server)))
                )
                for name, make in VERIFIERS.items()
            ]
            callers = [threading.Thread(target=self._call) for _ in range(CALLERS)]
            for thread in verifiers + callers:
                thread.start()
            try:
                yield
            finally:
                self._done.set()
                for thread in callers:
                    thread.join(30)
                for each in self._queues.values():
                    each.put(None)
                for thread in verifiers:
                    thread.join(30)

    def _call(self) -> None:
        with requests.Session() as session:
            while not self._done.wait(PAUSE_SECONDS):
                answer = session.post(
                    self.server.token_url,
                    data={"grant_type": "client_credentials"},
                    headers={"Authorization": self.client.basic},
                    timeout=10,
                )
                self.statuses.append(answer.status_code)
                if answer.status_code == requests.codes.ok:
                    token = answer.json()["access_token"]
                    self.last_kid = jwt.get_unverified_header(token)["kid"]
                    for each in self._queues.values():
                        each.put(token)

    def _verify(self, name: str, verify: Verify) -> None:
        while token := self._queues[name].get():
            self.told[name].append((jwt.get_unverified_header(token)["kid"], verify(token)))


def test_no_token_is_unverifiable_while_keys_rotate(tmp_path: Path) -> None:
    settings = {"TOKENHOUSE_JWKS_MAX_AGE": f"{MAX_AGE_SECONDS}s", "TOKENHOUSE_KEY_ANNOUNCE": "0s"}
    with running_server(tmp_path, "--workers", "3", **settings) as server:
        load = Load(server, server.create_client())
        signed = []
        with load.running():
            for _ in range(ROTATIONS):
                waiting = [key for key in server.flask_json("keys", "rotate") if key["state"] == "announced"]
                standby = min(waiting, key=lambda key: str(key["signs_from"]))["kid"]
                wait_until(lambda standby=standby: load.last_kid == standby)
                signed.append(standby)
            assert server.flask("keys", "revoke", signed[-1], "--yes").returncode == 0
            wait_until(lambda: load.last_kid not in {signed[-1], ""})
            time.sleep(3 * MAX_AGE_SECONDS)
        assert set(load.statuses) == {200}
        for name, told in load.told.items():
            assert len(told) == len(load.statuses), name
            assert {what for kid, what in told if kid != signed[-1]} == {"verified"}, name
            assert len({kid for kid, _ in told}) == ROTATIONS + 2, name
