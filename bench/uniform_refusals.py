"""Whether refusals tell by their time what they do not tell by their words.

Sends unknown client, wrong secret (of clients with one secret, with ten, and with one and 400 that were revoked),
expired secret, disabled and deleted client, interleaved in random order, to a real
server with one worker, over one kept connection, and prints the median of each and how far it lies from the first. The
same with assertions, for each algorithm. Run it on a quiet machine: `.venv/bin/python bench/uniform_refusals.py
[requests of each kind, 10000 unless given]`.
"""

import http.client
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from urllib.parse import urlencode

import jwt

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from joserfc.jwk import RSAKey
from support.assertions import ISSUER, Signer, claims_of, form, signer
from support.server import RunningServer, basic, running_server

from app.clients.fields import ClientFields
from app.clients.queries import MOST_SECRETS
from app.clients.trust_rules import Trust
from app.clients.trusts import METHOD
from app.crypto.key_set import KeySet
from app.database.models import ClientSecretRow, db

BODY = "grant_type=client_credentials"
WARM_UP = 200


def credentials(server: RunningServer) -> dict[str, str]:
    """An ``Authorization`` header for each kind of refusal; ids and secrets are equally long."""
    made = {
        kind: server.create_client(client_id=f"client-{kind:_<12}")
        for kind in ("wrong", "expired", "disabled", "deleted")
    }
    expired = server.create_client(client_id="client-expiring____", secret_expires_after=timedelta(microseconds=1))
    for kind, working, retired in (("ten", MOST_SECRETS, 0), ("retired", 1, 400)):
        made[kind] = server.create_client(client_id=f"client-{kind:_<12}")
        add_secrets(server, made[kind].client_id, working - 1, retired)
    with server.context():
        server.services.clients.repository.disable(made["disabled"].client_id)
        server.services.clients.repository.delete(made["deleted"].client_id)
    return {
        "unknown client": basic("client-unknown_____", made["wrong"].secret),
        "wrong secret": basic(made["wrong"].client_id, made["disabled"].secret),
        "10 secrets": basic(made["ten"].client_id, made["disabled"].secret),
        "400 retired": basic(made["retired"].client_id, made["disabled"].secret),
        "expired secret": expired.basic,
        "disabled client": made["disabled"].basic,
        "deleted client": made["deleted"].basic,
    }


def add_secrets(server: RunningServer, client_id: str, working: int, retired: int) -> None:
    """Give a client more secrets, some of which were revoked."""
    now = datetime.now(UTC)
    row = {
        "client_id": client_id,
        "digest": b"",
        "pepper_id": "p1",
        "last_four": "abcd",
        "origin": "generated",
        "created_at": now,
    }
    ended = [None] * working + [now] * retired
    rows = [
        {**row, "secret_id": f"s-{client_id[-8:]}-{number}", "digest": random.randbytes(32), "revoked_at": at}
        for number, at in enumerate(ended)
    ]
    if rows:
        with server.context():
            db.session.execute(ClientSecretRow.__table__.insert(), rows)
            db.session.commit()


def long_signers() -> tuple[Signer, Signer]:
    """Two pairs of RSA keys with 4096 bits."""
    made, other = (Signer("RS256", RSAKey.generate_key(4096)) for _ in range(2))
    return made, other


def assertions(server: RunningServer, alg: str) -> dict[str, Callable[[], str]]:
    """A maker of assertions for each kind of refusal; ids are equally long, and nothing else differs."""
    is_mac, is_long = alg == "HS256", alg == "RS256, 4096 bits"
    alg = alg.partition(",")[0]
    prefix = "rs4096" if is_long else alg.lower()
    method = "client_secret_jwt" if is_mac else "private_key_jwt"
    registered, stranger = (None, None) if is_mac else (long_signers() if is_long else (signer(alg), signer(alg)))
    fields = {} if registered is None else {"jwks": {"keys": [registered.jwk | {"kid": registered.kid}]}}
    secrets = {}
    with server.context():
        for kind in ("wrong", "audience", "disabled", "deleted"):
            described = ClientFields(client_name="A", token_endpoint_auth_method=method, auth_fields=fields)
            client_id = f"{prefix}-{kind:_<12}"
            _, made = server.services.clients.repository.register(described, client_id=client_id, with_secret=is_mac)
            secrets[kind] = made.secret if made else ""
        server.services.clients.repository.disable(f"{prefix}-disabled____")
        server.services.clients.repository.delete(f"{prefix}-deleted_____")
        for _ in range(MOST_SECRETS - 1 if is_mac else 0):
            server.services.clients.secrets.rotate(f"{prefix}-audience____", overlap=timedelta(days=9))

    def maker(kind: str, *, is_right: bool = True, audience: str = ISSUER) -> Callable[[], str]:
        def make() -> str:
            claims = claims_of(f"{prefix}-{kind:_<12}", audience)
            if registered is None or stranger is None:
                return jwt.encode(claims, secrets.get(kind, "") if is_right else "w" * 49, alg, {"kid": "x" * 43})
            return (registered if is_right else stranger).sign(claims, kid=registered.kid)

        return make

    return {
        "unknown client": maker("unknown", is_right=False),
        "wrong signature": maker("wrong", is_right=False),
        "10 secrets" if is_mac else "wrong audience": maker("audience", audience=ISSUER.replace("tokens", "nobody")),
        "disabled client": maker("disabled"),
        "deleted client": maker("deleted", is_right=False),
    }


def platform_tokens(server: RunningServer) -> dict[str, Callable[[], str]]:
    """A maker of request bodies for each kind of refusal of a platform's token."""
    platform, stranger, issuer = signer("RS256"), signer("RS256"), "https://platform.example.com"
    keys = KeySet({"keys": [platform.jwk | {"kid": platform.kid}]})
    trusts, repository = server.services.clients.trusts, server.services.clients.repository
    fields = ClientFields("A", token_endpoint_auth_method=METHOD)
    with server.context():
        for kind in ("wrong", "subject", "several", "untrusting", "disabled", "deleted"):
            client_id = f"fed-{kind:_<12}"
            repository.register(fields, client_id=client_id, with_secret=False)
            for number in range({"several": 16, "untrusting": 0}.get(kind, 1)):
                trusts.add(client_id, Trust(issuer, f"workload:{number}", {}, ISSUER), keys=keys)
        repository.disable("fed-disabled____")
        repository.delete("fed-deleted_____")

    def maker(kind: str, subject: str = "workload:0", *, is_right: bool = True) -> Callable[[], str]:
        def make() -> str:
            claims = claims_of("x", iss=issuer, sub=subject)
            token = (platform if is_right else stranger).sign(claims, kid=platform.kid)
            return urlencode(form(token, client_id=f"fed-{kind:_<12}"))

        return make

    return {
        "unknown client": maker("unknown"),
        "wrong signature": maker("wrong", is_right=False),
        "wrong subject": maker("subject", "workload:x"),
        "16 trusts": maker("several", is_right=False),
        "16, right key": maker("several", "workload:x"),
        "no trust": maker("untrusting"),
        "disabled client": maker("disabled"),
        "deleted client": maker("deleted"),
    }


def ask(connection: http.client.HTTPConnection, body: str, **headers: str) -> float:
    """Send one request that must be refused; seconds until its answer was read."""
    headers = {"Content-Type": "application/x-www-form-urlencoded", **headers}
    started = time.perf_counter()
    connection.request("POST", "/oauth/token", body, headers)
    response = connection.getresponse()
    response.read()
    took = time.perf_counter() - started
    assert response.status == 401, response.status  # noqa: S101 - Anything else would be no measurement.
    return took


def measure(what: str, of_each: int, asking: Mapping[str, Callable[[], float]]) -> None:
    """Ask for each kind, interleaved, and print."""
    for kind in list(asking) * (WARM_UP if of_each > WARM_UP else 1):
        asking[kind]()
    took: dict[str, list[float]] = {kind: [] for kind in asking}
    for _ in range(of_each):
        for kind in random.sample(list(asking), len(asking)):
            took[kind].append(asking[kind]())
    first = statistics.median(took["unknown client"])
    print(f"\n{what}: {of_each} requests of each kind, interleaved; medians in microseconds")
    for kind, seconds in took.items():
        median = statistics.median(seconds)
        print(f"{kind:<16} {median * 1e6:8.1f}  {100 * (median / first - 1):+6.2f} %")


def main() -> None:
    """Measure and print."""
    of_each = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    settings = {"TOKENHOUSE_ENCRYPTION_KEYS": f"k1:{'e' * 40}"}
    with tempfile.TemporaryDirectory() as folder, running_server(Path(folder), "--workers", "1", **settings) as server:
        connection = http.client.HTTPConnection("127.0.0.1", server.port)
        by_secret = {
            kind: partial(ask, connection, BODY, Authorization=header) for kind, header in credentials(server).items()
        }
        measure("secrets", of_each, by_secret)
        for alg in ("HS256", "RS256", "RS256, 4096 bits", "PS256", "ES256", "EdDSA"):
            # Signed beforehand for each request, outside of what is timed.
            asking = {
                kind: (lambda make=make: ask(connection, urlencode(form(make()))))
                for kind, make in assertions(server, alg).items()
            }
            measure(f"assertions, {alg}", of_each, asking)
        asking = {kind: (lambda make=make: ask(connection, make())) for kind, make in platform_tokens(server).items()}
        measure("platforms' tokens, RS256", of_each, asking)


if __name__ == "__main__":
    main()
