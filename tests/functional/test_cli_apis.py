"""``flask apis``: APIs, and which clients may call them."""

import json
from typing import Any

import jwt
import pytest
from functional.commands import data, misuse, refusal
from sqlalchemy import select
from unit.harness import Harness

from app.database.models import OutboxRow, db
from app.keyring.model import Ring

NOON = "2026-01-31T12:00:00Z"
URI = "https://orders.example.com"


def create(harness: Harness, name: str = "orders", identifier: str = URI, *words: str) -> Any:
    scope = () if "--scope" in words else ("--scope", "read write")
    return data(harness.run("apis", "create", name, "--identifier", identifier, *scope, *words, "--json"))


def claims_of(harness: Harness, client_id: str, *words: str) -> dict[str, Any]:
    token = data(harness.run("tokens", "issue", client_id, *words, "--json"))["access_token"]
    claims: dict[str, Any] = jwt.decode(token, options={"verify_signature": False})
    return claims


def test_create_list_and_show(harness: Harness) -> None:
    words = [
        "--scope",
        "admin",
        "--scope",
        "read write",
        "--lifetime",
        "5m",
        "--owner",
        "Team O",
        "--claim",
        "plan=gold",
    ]
    made = create(harness, "orders", URI, *words)
    assert made == {
        "name": "orders",
        "identifier": URI,
        "scope": "admin read write",
        "access_token_lifetime": 300,
        "signing_alg": None,
        "owner": "Team O",
        "claims": {"plan": "gold"},
        "document": "https://tokens.example.com/.well-known/oauth-protected-resource/orders",
        "callers": 0,
        "created_at": NOON,
        "updated_at": NOON,
    }
    harness.register("a")
    assert harness.run("apis", "grant", "orders", "a").exit_code == 0
    for named in ("orders", URI, f"{URI}:443/"):
        assert data(harness.run("apis", "show", named, "--json")) == {**made, "callers": 1}
    create(harness, "Bills", "bills")
    assert [api["name"] for api in data(harness.run("apis", "list", "--json"))] == ["Bills", "orders"]
    assert harness.run("apis", "list").stdout == (
        "name\tidentifier\tscope\tlifetime\towner\tcallers\n"
        "Bills\tbills\tread write\tdefault\t\t0\n"
        f"orders\t{URI}\tadmin read write\t5m\tTeam O\t1\n"
    )


def test_create_for_people_says_what_comes_next(harness: Harness) -> None:
    done = harness.run("apis", "create", "Orders API", "--identifier", "orders")
    assert done.exit_code == 0
    assert done.stdout.splitlines()[:2] == ["name        Orders API", "identifier  orders"]
    assert done.stderr.splitlines()[-1] == "Let a client call it: `flask apis grant 'Orders API' CLIENT`."


def test_a_client_gets_tokens_for_what_it_was_granted(harness: Harness) -> None:
    create(harness)
    create(harness, "bills", "bills", "--scope", "read pay")
    harness.register("a")
    granted = data(harness.run("apis", "grant", "orders", "a", "--scope", "read", "--json"))
    assert granted == {"api": "orders", "client_id": "a", "scope": "read", "granted_at": NOON}
    harness.clock.advance(seconds=1)
    done = harness.run("apis", "grant", "bills", "a")
    assert (done.stdout, done.stderr) == ("", "a gets tokens for bills with read pay from now on.\n")
    assert {name: claims_of(harness, "a")[name] for name in ("aud", "scope")} == {"aud": URI, "scope": "read"}
    assert claims_of(harness, "a", "--audience", "bills")["scope"] == "read pay"
    shown = data(harness.run("clients", "show", "a", "--json"))
    assert shown["apis"] == [
        {"name": "orders", "identifier": URI, "scope": ["read"]},
        {"name": "bills", "identifier": "bills", "scope": ["read", "pay"]},
    ]
    assert "orders (read), bills (read pay)\n" in harness.run("clients", "show", "a").stdout
    assert harness.run("apis", "revoke-grant", "orders", "a").exit_code == 0
    assert claims_of(harness, "a")["aud"] == "bills"
    told = refusal(harness.run("tokens", "issue", "a", "--resource", URI))
    assert told == f"invalid_target: The client was not granted: {URI}"


def test_a_client_whose_requests_change_is_warned_of(harness: Harness) -> None:
    create(harness)
    used, new = harness.register("used"), harness.register("new")
    headers = {"Authorization": used.basic}
    answer = harness.app.test_client().post("/oauth/token", data={"grant_type": "client_credentials"}, headers=headers)
    assert answer.status_code == 200
    harness.services.clients.last_used.flush()
    warning = "Warning: its requests that name no resource get a token for orders from now on.\n"
    assert harness.run("apis", "grant", "orders", "used").stderr.endswith(warning)
    assert not harness.run("apis", "grant", "orders", new.client_id).stderr.endswith(warning)


def test_callers(harness: Harness) -> None:
    create(harness)
    for client_id in ("b", "a"):
        harness.register(client_id)
        harness.run("apis", "grant", "orders", client_id, "--scope", "read" if client_id == "a" else "")
    harness.run("clients", "disable", "b")
    assert [
        (one["client_id"], one["state"], one["scope"])
        for one in data(harness.run("apis", "callers", "orders", "--json"))
    ] == [
        ("a", "enabled", "read"),
        ("b", "disabled", ""),
    ]
    assert harness.run("apis", "callers", URI).stdout == (
        "client_id\tname\tstate\tscope\tunused_scopes\tgranted\tlast_used\n"
        f"a\tA service\tenabled\tread\tread\t{NOON}\t\n"
        f"b\tA service\tdisabled\t\t\t{NOON}\t\n"
    )


def test_callers_with_scopes_that_they_did_not_use_in_90_days(harness: Harness) -> None:
    create(harness)
    callers = {client_id: harness.register(client_id) for client_id in ("all", "some", "none")}
    for client_id in callers:
        harness.run("apis", "grant", "orders", client_id)

    def fetch(client_id: str, **parameters: str) -> None:
        body = {"grant_type": "client_credentials", **parameters}
        headers = {"Authorization": callers[client_id].basic}
        assert harness.app.test_client().post("/oauth/token", data=body, headers=headers).status_code == 200
        harness.services.apis.usage.flush()

    def unused() -> dict[str, tuple[str, bool, str | None]]:
        found = data(harness.run("apis", "callers", "orders", "--unused-scopes", "--json"))
        return {one["client_id"]: (one["unused_scopes"], one["is_unused"], one["last_used_on"]) for one in found}

    fetch("all")
    fetch("some", scope="read")
    assert unused() == {"some": ("write", False, "2026-01-31"), "none": ("read write", True, None)}
    harness.clock.advance(days=90)
    assert unused() == {"some": ("write", False, "2026-01-31"), "none": ("read write", True, None)}
    fetch("all", scope="write")
    harness.clock.advance(days=1)
    assert unused() == {
        "all": ("read", False, "2026-05-01"),
        "some": ("read write", True, "2026-01-31"),
        "none": ("read write", True, None),
    }
    listed = harness.run("apis", "callers", "orders", "--unused-scopes").stdout.splitlines()
    assert listed[1].split("\t")[3:5] == ["read write", "read"]
    # A new grant keeps the recorded uses, except those of a removed scope.
    harness.run("apis", "grant", "orders", "all", "--scope", "read")
    fetch("all")
    assert "all" not in unused()


def test_update_replaces_adds_and_removes(harness: Harness) -> None:
    create(harness, "orders", URI, "--lifetime", "5m", "--owner", "O", "--claim", "a=b")
    harness.register("a")
    harness.run("apis", "grant", "orders", "a")
    changed = data(harness.run("apis", "update", "orders", "--add-scope", "all", "--remove-scope", "write", "--json"))
    assert changed["scope"] == "read all"
    assert data(harness.run("apis", "callers", "orders", "--json"))[0]["scope"] == "read"
    words = ["--scope", "", "--lifetime", "default", "--owner", "", "--claim", "", "--no-document"]
    changed = data(harness.run("apis", "update", "orders", *words, "--identifier", "orders", "--json"))
    for name, value in (("scope", ""), ("access_token_lifetime", None), ("owner", ""), ("claims", {})):
        assert changed[name] == value
    assert (changed["identifier"], changed["document"]) == ("orders", None)
    assert claims_of(harness, "a")["aud"] == "orders"
    assert "scope" not in claims_of(harness, "a")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ((), "nothing to change: `flask apis update --help` shows what can be"),
        (("--remove-scope", "x"), "API 'orders' has no scope x"),
        (("--claim", "aud=x"), "'aud' is a registered claim name: choose another name"),
        (("--identifier", "bills", "--document"), "identifier 'bills' must be an https URL without a query for a "),
    ],
)
def test_a_bad_update_changes_nothing(harness: Harness, words: tuple[str, ...], told: str) -> None:
    made = create(harness)
    assert refusal(harness.run("apis", "update", "orders", *words)).startswith(told)
    assert data(harness.run("apis", "show", "orders", "--json")) == made


NO_KEY = (
    "Warning: no client gets a token for orders yet: the key ring has no ES256 key that may sign now: "
    "`flask keys generate --alg ES256`.\n"
)


def test_an_api_may_have_an_algorithm_of_its_own(harness: Harness) -> None:
    done = harness.run("apis", "create", "orders", "--identifier", URI, "--signing-alg", "ES256", "--json")
    assert (data(done)["signing_alg"], done.stderr) == ("ES256", NO_KEY)
    client = harness.register("a", introspects=("*",))
    harness.run("apis", "grant", "orders", "a")
    caller, headers = harness.app.test_client(), {"Authorization": client.basic}
    body = {"grant_type": "client_credentials"}
    assert caller.post("/oauth/token", data=body, headers=headers).status_code == 503
    assert harness.run("keys", "generate", "--alg", "ES256").exit_code == 0
    told = harness.run("apis", "update", URI, "--owner", "O").stderr
    assert "the first may sign from 2026-02-07T12:00:00+00:00 on" in told
    harness.clock.advance(days=8)
    harness.services.keys.active.refresh()
    kids = {}
    for alg, audience in (("ES256", URI), ("RS256", None)):
        if audience is None:
            harness.run("apis", "update", "orders", "--signing-alg", "default")
        answer = caller.post("/oauth/token", data=body, headers=headers).json
        header = jwt.get_unverified_header(answer["access_token"])
        assert (header["alg"], header["typ"]) == (alg, "at+jwt")
        kids[alg] = header["kid"]
        told = caller.post("/oauth/introspect", data={"token": answer["access_token"]}, headers=headers).json
        assert (told["active"], told["aud"]) == (True, URI)
    published = {key["kid"]: key["alg"] for key in caller.get("/.well-known/jwks.json").json["keys"]}
    assert {published[kid] for kid in kids.values()} == {"ES256", "RS256"}


def test_keys_for_apis_are_rotated_too_and_not_retired(harness: Harness) -> None:
    create(harness, "orders", URI, "--signing-alg", "ES256")
    assert harness.run("keys", "generate", "--alg", "ES256").exit_code == 0
    harness.clock.advance(days=8)
    told = refusal(harness.run("keys", "retire", "ES256", "--yes"))
    assert told == "ES256 signs the tokens of an API: `flask apis update API --signing-alg` changes that"

    def states(alg: str) -> list[str]:
        return sorted(key["state"] for key in data(harness.run("keys", "list", "--json")) if key["alg"] == alg)

    assert len(states("ES256")) == 1
    assert harness.run("keys", "rotate", "--if-due").exit_code == 0
    assert len(states("ES256")) == 2
    assert harness.run("keys", "rotate", "--alg", "ES256").exit_code == 0
    for _ in range(60):
        harness.clock.advance(days=10)
        assert harness.run("keys", "rotate", "--if-due").exit_code == 0
        assert states("RS256").count("signing") == 1
        ring = harness.services.keys.manager.backend.read()
        assert ring.signing_key(harness.clock(), "ES256")
        assert ring.standbys(harness.clock(), "ES256")
        assert harness.run("keys", "check").exit_code == 0
    assert len(states("ES256")) <= 3


def test_each_algorithm_has_its_standby_which_replaces_a_revoked_key(harness: Harness) -> None:
    create(harness, "orders", URI, "--signing-alg", "ES256")
    done = harness.run("keys", "generate", "--alg", "ES256", "--json")
    first = data(done)["kid"]
    assert done.stderr.startswith(f"{first} signs from 2026-02-07T12:00:00Z on.\n")
    harness.clock.advance(days=8)
    assert harness.run("keys", "rotate", "--if-due").exit_code == 0
    standbys = [ring_of(harness).standbys(harness.clock(), alg)[0].kid for alg in ("RS256", "ES256")]
    assert rotated(harness) == [[kid] for kid in standbys]
    done = harness.run("keys", "revoke", first, "--yes")
    assert f"{standbys[1]} signs.\n" in done.stderr
    harness.clock.advance(seconds=5)
    assert ring_of(harness).signing_key(harness.clock(), "ES256").kid == standbys[1]
    assert len(ring_of(harness).standbys(harness.clock(), "ES256")) == 1
    assert ring_of(harness).signing_key(harness.clock()).alg == "RS256"


def ring_of(harness: Harness) -> Ring:
    return harness.services.keys.manager.backend.read()


def rotated(harness: Harness) -> list[list[str]]:
    """The keys of each rotation in the audit log."""
    with harness.app.app_context():
        rows = db.session.scalars(select(OutboxRow).where(OutboxRow.event == "KeyRingChanged")).all()
        return [facts["kids"] for row in rows if (facts := json.loads(row.facts))["change"] == "rotated"]


def test_delete_asks_and_says_how_many_clients_lose_it(harness: Harness) -> None:
    create(harness)
    harness.register("a")
    harness.run("apis", "grant", "orders", "a")
    assert refusal(harness.run("apis", "delete", "orders")) == "1 client gets no more tokens for 'orders': say --yes"
    done = harness.run("apis", "delete", "orders", "--yes")
    assert done.stderr == (
        "orders was deleted. 1 client gets no more tokens for it; those that exist are valid until they expire.\n"
    )
    assert refusal(harness.run("apis", "show", "orders")) == "there is no API 'orders': `flask apis list` shows all"
    assert data(harness.run("clients", "show", "a", "--json"))["apis"] == []


def test_an_identifier_is_required(harness: Harness) -> None:
    assert misuse(harness.run("apis", "create", "orders")) == "Error: Missing option '--identifier'."
