"""A platform's token on SQLite and PostgreSQL: which trusts are read, and what of them decides."""

from typing import Any

import pytest
from support.assertions import ASSERTION_TYPE, ISSUER, signer
from support.token_request import Request
from unit.harness import Harness

from app.clients.fields import ClientFields
from app.clients.trust_rules import MOST_TRUSTS, Trust
from app.crypto.key_set import KeySet
from app.errors import InvalidClient, ManagementError
from app.oauth.client_auth.federated_jwt import FederatedJwt
from app.types import Authentication

PLATFORM, OTHER = signer("ES256"), signer("ES256")
CLUSTER, DOMAIN = "https://cluster.example", "https://spire.example"


def keys_of(one: Any) -> KeySet:
    return KeySet({"keys": [one.jwk | {"kid": one.kid}]})


def make(harness: Harness, *trusts: Trust, client_id: str = "c", keys: KeySet | None = None) -> None:
    fields = ClientFields("C", token_endpoint_auth_method="federated_jwt")
    with harness.app.app_context():
        harness.store.register(fields, client_id=client_id, with_secret=False)
        for trust in trusts:
            harness.services.clients.trusts.add(client_id, trust, keys=keys or keys_of(PLATFORM))


def send(harness: Harness, one: Any = PLATFORM, client_id: str = "c", **claims: Any) -> tuple[Authentication, Request]:
    now = int(harness.clock().timestamp())
    token = one.sign({"aud": ISSUER, "iat": now, "exp": now + 60, **claims})
    sent = {"client_id": client_id, "client_assertion": token, "client_assertion_type": ASSERTION_TYPE}
    request = Request(sent)
    return FederatedJwt(harness.services.oauth.client_auth).authenticate(request), request


def refusal(harness: Harness, *arguments: Any, **claims: Any) -> tuple[str, str | None]:
    with pytest.raises(InvalidClient) as caught:
        send(harness, *arguments, **claims)
    return caught.value.reason, caught.value.detail


def test_the_trust_that_fits_is_found_among_many(any_harness: Harness) -> None:
    make(any_harness, *(Trust(CLUSTER, f"workload:{number}", {}, ISSUER) for number in range(MOST_TRUSTS)))
    found, request = send(any_harness, iss=CLUSTER, sub="workload:15")
    assert (found.client.client_id, found.method, found.secret_id) == ("c", "federated_jwt", None)
    assert request.assertion_facts["assertion_subject"] == "workload:15"
    assert refusal(any_harness, iss=CLUSTER, sub="workload:16")[0] == "trust_mismatch"
    assert refusal(any_harness, OTHER, iss=CLUSTER, sub="workload:15") == ("issuer_signature", None)
    assert refusal(any_harness, PLATFORM, "nobody", iss=CLUSTER, sub="workload:15") == ("unknown_client", None)
    with pytest.raises(ManagementError, match=r"^c has 16 trusts, which is the most$"), any_harness.app.app_context():
        any_harness.services.clients.trusts.add("c", Trust(CLUSTER, "one:more", {}, ISSUER))


def test_each_issuer_has_its_own_keys_and_a_domain_stands_for_one(any_harness: Harness) -> None:
    make(any_harness, Trust(CLUSTER, "workload:a", {}, ISSUER), Trust(CLUSTER, "spiffe://a.example/b", {}, ISSUER))
    with any_harness.app.app_context():
        spire = Trust(DOMAIN, "spiffe://b.example/c/*", {}, ISSUER)
        any_harness.services.clients.trusts.add("c", spire, keys=keys_of(OTHER))
    for one, claims in (
        (PLATFORM, {"iss": CLUSTER, "sub": "workload:a"}),
        (PLATFORM, {"sub": "spiffe://a.example/b"}),
        (OTHER, {"sub": "spiffe://b.example/c/d"}),
        (OTHER, {"iss": DOMAIN, "sub": "spiffe://b.example/c/d"}),
    ):
        assert send(any_harness, one, **claims)[0].client.client_id == "c"
    for one, claims, reason in (
        (OTHER, {"iss": CLUSTER, "sub": "workload:a"}, "issuer_signature"),
        (PLATFORM, {"sub": "spiffe://b.example/c/d"}, "issuer_signature"),
        (OTHER, {"sub": "spiffe://b.example.evil/c/d"}, "no_trust"),
        (OTHER, {"sub": "spiffe://b.example/x"}, "trust_mismatch"),
        (OTHER, {"iss": "spiffe://b.example/", "sub": "spiffe://b.example/c/d"}, "no_trust"),
        (OTHER, {"iss": "spiffe://", "sub": "spiffe://b.example/c/d"}, "no_trust"),
        (PLATFORM, {"iss": "a\0b", "sub": "workload:a"}, "no_trust"),
        (PLATFORM, {"iss": "", "sub": "workload:a"}, "no_trust"),
        (PLATFORM, {"iss": "-", "sub": "workload:a"}, "no_trust"),
    ):
        assert refusal(any_harness, one, **claims)[0] == reason, claims


def test_no_issuer_signs_for_another_one_of_the_same_domain(any_harness: Harness) -> None:
    make(any_harness, Trust(CLUSTER, "spiffe://a.example/first", {}, ISSUER))
    any_harness.clock.advance(seconds=1)
    with any_harness.app.app_context():
        second = Trust(DOMAIN, "spiffe://a.example/second", {}, ISSUER)
        any_harness.services.clients.trusts.add("c", second, keys=keys_of(OTHER))
    assert send(any_harness, sub="spiffe://a.example/first")[0].client.client_id == "c"
    assert refusal(any_harness, sub="spiffe://a.example/second")[0] == "trust_mismatch"
    # Which issuer it is must be said where two have one domain.
    assert refusal(any_harness, OTHER, sub="spiffe://a.example/second")[0] == "issuer_signature"
    assert send(any_harness, OTHER, iss=DOMAIN, sub="spiffe://a.example/second")[0].client.client_id == "c"


def test_a_client_that_is_deleted_leaves_no_trust(any_harness: Harness) -> None:
    make(any_harness, Trust(CLUSTER, "workload:a", {}, ISSUER))
    with any_harness.app.app_context():
        any_harness.store.delete("c")
    assert refusal(any_harness, iss=CLUSTER, sub="workload:a")[0] == "deleted_client"


def test_a_token_that_may_be_used_once_is_remembered_by_its_issuer(
    any_harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(any_harness, Trust(CLUSTER, "workload:a", {}, ISSUER, once=True))
    now, asked = int(any_harness.clock().timestamp()), []
    store = any_harness.services.oauth.replay_store
    monkeypatch.setattr(store, "use", lambda *arguments: bool(asked.append(arguments) or True))
    send(any_harness, iss=CLUSTER, sub="workload:a", jti="j")
    assert asked == [(CLUSTER, "j", now, now + 180)]
