"""What every assertion must contain, to the second and to the character, and how long a used one is remembered."""

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import jwt
import pytest
from conftest import SettableClock
from joserfc.jwk import RSAKey
from sqlalchemy import select
from support.assertions import ASSERTION_TYPE, ISSUER, Signer, by_hand, claims_of, signer
from support.token_request import Request
from unit.harness import Harness, open_harness

from app.clients.encrypted_secrets import EncryptedSecrets
from app.clients.fields import ClientFields
from app.clients.queries import MOST_SECRETS
from app.crypto.jwk import signature_octets
from app.crypto.key_set import check_jwks
from app.database.models import ClientSecretRow, db
from app.errors import InvalidClient, InvalidRequest, ManagementError
from app.oauth.client_auth import private_key_jwt
from app.oauth.client_auth.assertions import (
    check_assertion_fields,
)
from app.oauth.client_auth.client_secret_jwt import ClientSecretJwt
from app.oauth.client_auth.private_key_jwt import PrivateKeyJwt
from app.oauth.replay_store import JTI_MAX_CHARACTERS, REMEMBERED_LONGER_SECONDS, SKEW_SECONDS
from app.oauth.requests import ASSERTION_MAX_CHARACTERS
from app.types import Authentication

TOKEN_ENDPOINT = f"{ISSUER}/oauth/token"
LONGEST_SECONDS = 3600
SIGNER = signer("ES256")


def keyed(harness: Harness, client_id: str, **fields: str) -> None:
    """Register a client of :data:`SIGNER`."""
    keys = {"keys": [SIGNER.jwk | {"kid": SIGNER.kid}]}
    with harness.app.app_context():
        harness.store.register(_fields(auth_fields={"jwks": keys, **fields}), client_id=client_id, with_secret=False)


def _fields(**auth: Any) -> ClientFields:
    return ClientFields(client_name="Signs", token_endpoint_auth_method="private_key_jwt", **auth)


@pytest.fixture
def harness(tmp_path: Path, clock: SettableClock) -> Iterator[Harness]:
    with open_harness(tmp_path, clock) as made:
        keyed(made, "signs")
        keyed(made, "strict", assertion_audience="issuer")
        yield made


def claims(harness: Harness, client_id: str = "signs", audience: Any = ISSUER, **changes: Any) -> dict[str, Any]:
    """Claims of a good assertion by the clock of the harness, but for ``changes``: seconds from now for times."""
    now = int(harness.clock().timestamp())
    for name in ("iat", "exp", "nbf"):
        if type(changes.get(name)) in {int, float}:
            changes[name] += now
    return claims_of(client_id, audience, **{"iat": now, "exp": now + 60, **changes})


def authenticate(harness: Harness, assertion: str, **parameters: str) -> Authentication:
    sent = {"client_assertion": assertion, "client_assertion_type": ASSERTION_TYPE, **parameters}
    return PrivateKeyJwt(harness.services.oauth.client_auth).authenticate(Request(sent))


def refusal(harness: Harness, assertion: str, **parameters: str) -> tuple[str, str | None]:
    """Why an assertion is refused, and which client the log names."""
    with pytest.raises(InvalidClient) as caught:
        authenticate(harness, assertion, **parameters)
    return str(caught.value.reason), caught.value.client_id


def detail(harness: Harness, assertion: str) -> str | None:
    """What the log says besides the reason."""
    with pytest.raises(InvalidClient) as caught:
        authenticate(harness, assertion)
    assert caught.value.description == InvalidClient.description
    return caught.value.detail


def test_a_good_assertion_authenticates_its_client(harness: Harness) -> None:
    assertion = SIGNER.sign(claims(harness))
    request = Request({"client_assertion": assertion, "client_assertion_type": ASSERTION_TYPE, "client_id": "signs"})
    found = PrivateKeyJwt(harness.services.oauth.client_auth).authenticate(request)
    assert (found.client.client_id, found.method, found.secret_id) == ("signs", "private_key_jwt", None)
    assert request.presented_secrets == [assertion]
    assert list(harness.services.clients.last_used._waiting) == [("signs", None, "192.0.2.1")]  # noqa: SLF001


@pytest.mark.parametrize(
    "changes",
    [
        {"exp": -SKEW_SECONDS + 1},
        {"exp": LONGEST_SECONDS + SKEW_SECONDS},
        {"iat": SKEW_SECONDS},
        {"nbf": SKEW_SECONDS},
        {"iat": -86400},
        {"iat": None},
        {"exp": -SKEW_SECONDS + 0.5},
        {"exp": LONGEST_SECONDS + SKEW_SECONDS - 0.5, "iat": SKEW_SECONDS - 0.5, "nbf": 0.5},
        {"jti": "x"},
        {"jti": "x" * JTI_MAX_CHARACTERS},
        {"audience": TOKEN_ENDPOINT},
        {"audience": [ISSUER]},
        {"audience": [ISSUER, TOKEN_ENDPOINT]},
    ],
    ids=str,
)
def test_what_is_just_good_is_good(harness: Harness, changes: dict[str, Any]) -> None:
    assert authenticate(harness, SIGNER.sign(claims(harness, **changes))).client.client_id == "signs"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"exp": -SKEW_SECONDS}, "assertion_expired"),
        ({"exp": LONGEST_SECONDS + SKEW_SECONDS + 1}, "assertion_too_long"),
        ({"iat": SKEW_SECONDS + 1}, "assertion_in_the_future"),
        ({"nbf": SKEW_SECONDS + 1}, "assertion_in_the_future"),
        ({"exp": -SKEW_SECONDS - 0.5}, "assertion_expired"),
        ({"exp": LONGEST_SECONDS + SKEW_SECONDS + 0.5}, "assertion_too_long"),
        ({"iat": SKEW_SECONDS + 0.5}, "assertion_in_the_future"),
        ({"exp": None}, "assertion_times"),
        ({"exp": float("inf")}, "assertion_times"),
        ({"exp": float("nan")}, "assertion_times"),
        ({"nbf": float("-inf")}, "assertion_times"),
        ({"exp": True}, "assertion_times"),
        ({"iat": "7"}, "assertion_times"),
        ({"nbf": "7"}, "assertion_times"),
        ({"jti": None}, "assertion_without_id"),
        ({"jti": ""}, "assertion_without_id"),
        ({"jti": 7}, "assertion_without_id"),
        ({"jti": "x" * (JTI_MAX_CHARACTERS + 1)}, "assertion_without_id"),
        ({"iss": "another"}, "assertion_of_another"),
        ({"iss": None}, "assertion_of_another"),
        ({"audience": "https://another.example"}, "assertion_audience"),
        ({"audience": None}, "assertion_audience"),
        ({"audience": []}, "assertion_audience"),
        ({"audience": [7]}, "assertion_audience"),
        ({"audience": [ISSUER, "https://another.example"]}, "assertion_audience"),
    ],
    ids=str,
)
def test_what_is_just_wrong_is_refused_with_its_reason(harness: Harness, changes: dict[str, Any], reason: str) -> None:
    assert refusal(harness, SIGNER.sign(claims(harness, **changes))) == (reason, "signs")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"exp": None}, "exp is missing"),
        ({"exp": "7"}, "exp is not a number"),
        ({"iat": "7", "nbf": True}, "iat, nbf is not a number"),
        ({"exp": -SKEW_SECONDS}, "exp has passed"),
        ({"exp": 10**9}, "exp is more than 3600 s ahead"),
        ({"nbf": SKEW_SECONDS + 1}, "nbf is in the future"),
        ({"iss": None}, "iss is missing"),
        ({"iss": "another"}, "iss is not sub"),
        ({"audience": None}, "aud is missing"),
        ({"audience": "another"}, "aud is not the issuer"),
        ({"audience": [ISSUER, "another"]}, "aud has others than the issuer"),
        ({"client_id": "strict", "audience": TOKEN_ENDPOINT}, "aud is the token endpoint, not the issuer"),
        ({"client_id": "strict", "audience": [ISSUER, TOKEN_ENDPOINT]}, "aud has the token endpoint too"),
        ({"jti": None}, "jti is missing"),
        ({"jti": ""}, "jti is not a string of 1 to 255 characters"),
    ],
    ids=str,
)
def test_the_log_names_the_claim_that_is_missing_or_wrong(harness: Harness, changes: dict[str, Any], said: str) -> None:
    assert detail(harness, SIGNER.sign(claims(harness, **changes))) == said


def test_the_log_names_what_is_wrong_in_the_header(harness: Harness) -> None:
    assert (
        detail(harness, SIGNER.sign(claims(harness), typ="at+jwt")) == "typ is none of jwt, client-authentication+jwt"
    )
    assert detail(harness, SIGNER.sign(claims(harness), crit=["b64"])) == "crit names extensions"


@pytest.mark.parametrize("sub", [None, "nobody", "a\tb", 7, ""])
def test_a_client_that_does_not_exist_is_not_named(harness: Harness, sub: Any) -> None:
    named = claims(harness) | {"iss": sub, "sub": sub}
    by_pyjwt = sub is None or isinstance(sub, str)
    assertion = SIGNER.sign({k: v for k, v in named.items() if v is not None}) if by_pyjwt else by_hand({}, named)
    assert refusal(harness, assertion) == ("unknown_client", None)


@pytest.mark.parametrize(
    "typ",
    ["JWT", "jwt", "Jwt", "application/jwt", "client-authentication+jwt", "Application/Client-Authentication+JWT"],
)
def test_a_type_that_assertions_have_is_good(harness: Harness, typ: str) -> None:
    assert authenticate(harness, SIGNER.sign(claims(harness), typ=typ)).client.client_id == "signs"


@pytest.mark.parametrize("header", [{"typ": "at+jwt"}, {"typ": "application/jwt/"}, {"crit": ["b64"]}], ids=str)
def test_a_header_for_something_else_is_refused(harness: Harness, header: dict[str, Any]) -> None:
    assert refusal(harness, SIGNER.sign(claims(harness), **header)) == ("assertion_other_type", "signs")


@pytest.mark.parametrize("typ", [7, ["JWT"], {"JWT": 1}], ids=str)
def test_a_type_that_is_no_text_is_refused_and_its_signature_first(harness: Harness, typ: object) -> None:
    forged = by_hand({"alg": "ES256", "kid": SIGNER.kid, "typ": typ}, claims(harness))
    assert refusal(harness, forged) == ("assertion_signature", "signs")


@pytest.mark.parametrize(
    "assertion", ["", "x", "a.b.c", by_hand({"alg": "ES256"}, [1]), by_hand({"alg": "ES256"}, {}, b"")], ids=str
)
def test_what_is_no_assertion_is_refused(harness: Harness, assertion: str) -> None:
    assert refusal(harness, assertion) == ("assertion_malformed", None)


def test_an_assertion_may_be_so_long_and_no_longer(harness: Harness) -> None:
    fill = ASSERTION_MAX_CHARACTERS - len(SIGNER.sign(claims(harness, x="")))
    made = (SIGNER.sign(claims(harness, x="y" * length)) for length in range(fill, 0, -1))
    longest = next(assertion for assertion in made if len(assertion) <= ASSERTION_MAX_CHARACTERS)
    assert len(longest) > ASSERTION_MAX_CHARACTERS - 4
    assert authenticate(harness, longest).client.client_id == "signs"
    assert refusal(harness, SIGNER.sign(claims(harness, x="y" * (fill + 8)))) == ("assertion_malformed", None)


def test_the_parameters_must_be_those_of_an_assertion(harness: Harness) -> None:
    good = SIGNER.sign(claims(harness))
    assert refusal(harness, good, client_id="strict") == ("other_client_id", "signs")
    assert refusal(harness, good, client_assertion_type="urn:another") == ("assertion_type_unknown", None)
    method = PrivateKeyJwt(harness.services.oauth.client_auth)
    for name, present in (("client_assertion", "client_assertion_type"), ("client_assertion_type", "client_assertion")):
        with pytest.raises(InvalidRequest, match=f"The parameter {name} is missing"):
            method.authenticate(Request({present: good}))
    assert authenticate(harness, good).client.client_id == "signs"


def test_a_client_or_a_server_may_insist_on_the_issuer(tmp_path: Path, harness: Harness) -> None:
    assert authenticate(harness, SIGNER.sign(claims(harness, "strict"))).client.client_id == "strict"
    refused = SIGNER.sign(claims(harness, "strict", TOKEN_ENDPOINT))
    assert refusal(harness, refused) == ("assertion_audience", "strict")
    (tmp_path / "other").mkdir()
    with open_harness(tmp_path / "other", harness.clock, assertion_audience="issuer") as other:
        keyed(other, "signs")
        assert refusal(other, SIGNER.sign(claims(other, audience=TOKEN_ENDPOINT))) == ("assertion_audience", "signs")
        assert authenticate(other, SIGNER.sign(claims(other))).client.client_id == "signs"


def test_an_assertion_is_used_once_and_remembered_for_longer_than_it_is_good(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, asked = harness.services.oauth.replay_store, []
    use = store.use
    monkeypatch.setattr(store, "use", lambda *arguments: asked.append(arguments) or use(*arguments))  # type: ignore[func-returns-value]
    stated = claims(harness)
    assertion = SIGNER.sign(stated)
    authenticate(harness, assertion)
    assert refusal(harness, assertion) == ("assertion_replayed", "signs")
    until = stated["exp"] + SKEW_SECONDS + REMEMBERED_LONGER_SECONDS
    assert asked == [("signs", stated["jti"], stated["iat"], until)] * 2


def test_a_fraction_is_rounded_so_that_nothing_is_forgotten_early(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, asked = int(harness.clock().timestamp()), []
    monkeypatch.setattr(harness.services.oauth.replay_store, "use", lambda *arguments: asked.append(arguments) or True)
    authenticate(harness, SIGNER.sign(claims(harness, exp=59.25, iat=-0.75, jti="a")))
    # Without iat it may be as old as any that expires then.
    authenticate(harness, SIGNER.sign(claims(harness, exp=59.25, iat=None, jti="b")))
    assert asked == [("signs", "a", now - 1, now + 180), ("signs", "b", now + 59 - LONGEST_SECONDS, now + 180)]


@pytest.mark.parametrize("exp", [60, 59.5])
def test_a_used_assertion_is_remembered_until_its_last_moment_whatever_machine_cleans_up(
    harness: Harness, exp: float
) -> None:
    assertion = SIGNER.sign(claims(harness, exp=exp))
    authenticate(harness, assertion)
    store = harness.services.oauth.replay_store
    # The last second in which it is accepted here; a machine whose clock is a minute ahead deletes what has expired.
    harness.clock.advance(seconds=int(exp) + SKEW_SECONDS - 1)
    harness.clock.advance(seconds=SKEW_SECONDS)
    store.delete_expired()
    harness.clock.advance(seconds=-SKEW_SECONDS)
    assert refusal(harness, assertion) == ("assertion_replayed", "signs")
    harness.clock.advance(seconds=1 if exp == 60 else 2)
    assert refusal(harness, assertion) == ("assertion_expired", "signs")


def test_what_is_refused_is_not_used_up(harness: Harness) -> None:
    stated = claims(harness, iat=SKEW_SECONDS + 1)
    assert refusal(harness, SIGNER.sign(stated))[0] == "assertion_in_the_future"
    harness.clock.advance(seconds=1)
    assert authenticate(harness, SIGNER.sign(stated)).client.client_id == "signs"


def test_another_key_and_a_disabled_client_are_refused(harness: Harness) -> None:
    stranger = Signer("ES256", signer("ES256").key)
    assert refusal(harness, stranger.sign(claims(harness), kid=SIGNER.kid)) == ("assertion_signature", "signs")
    with harness.app.app_context():
        harness.store.disable("signs")
    assert refusal(harness, SIGNER.sign(claims(harness))) == ("disabled_client", "signs")


@pytest.mark.parametrize(
    ("parameters", "by_key", "by_secret"),
    [
        ({}, False, False),
        ({"client_id": "a", "client_secret": "b"}, False, False),
        ({"client_assertion_type": ASSERTION_TYPE}, True, False),
        ({"client_assertion": "no JWT"}, True, False),
        ({"client_assertion": by_hand({"alg": "ES256"}, {})}, True, False),
        ({"client_assertion": by_hand({"alg": 7}, {})}, True, False),
        ({"client_assertion": by_hand({}, {})}, True, False),
        ({"client_assertion": by_hand({"alg": "HS256"}, {})}, False, True),
        ({"client_assertion": by_hand({"alg": "HS512"}, {})}, False, True),
        ({"client_assertion": by_hand({"alg": "HS256", "x": "y" * ASSERTION_MAX_CHARACTERS}, {})}, True, False),
    ],
    ids=lambda value: str(value)[:60],
)
def test_an_assertion_is_of_the_method_that_its_header_names(
    harness: Harness, parameters: dict[str, str], *, by_key: bool, by_secret: bool
) -> None:
    dependencies = harness.services.oauth.client_auth
    assert PrivateKeyJwt(dependencies).is_presented(Request(parameters)) is by_key
    assert ClientSecretJwt(dependencies).is_presented(Request(parameters)) is by_secret


def test_what_a_client_registers_is_checked() -> None:
    check_assertion_fields("a_method", {})
    check_assertion_fields("a_method", {"assertion_audience": "any", "jwks": 1}, "jwks")
    check_assertion_fields("a_method", {"assertion_audience": "issuer"})
    with pytest.raises(ManagementError, match=r"^a_method knows no jwks, x$"):
        check_assertion_fields("a_method", {"x": 1, "jwks": 2})
    with pytest.raises(ManagementError, match=r"^assertion audience must be any or issuer$"):
        check_assertion_fields("a_method", {"assertion_audience": "some"})


HELD = "a-secret-that-is-the-key-of-a-mac-12345"


@pytest.fixture
def shared(tmp_path: Path, clock: SettableClock) -> Iterator[Harness]:
    """Where a client signs with its secret, which an old encryption key has encrypted."""
    (tmp_path / "shared").mkdir()
    old, new = f"k1:{'o' * 40}", f"k2:{'n' * 40}"
    with open_harness(tmp_path / "shared", clock, encryption_keys=old, secret_peppers=f"p:{'p' * 40}") as made:
        made.register(
            "macs", secret=HELD, token_endpoint_auth_method="client_secret_jwt", expires_after=timedelta(days=1)
        )
    with open_harness(
        tmp_path / "shared",
        clock,
        migrated=False,
        with_key=False,
        encryption_keys=f"{new},{old}",
        secret_peppers=f"p:{'p' * 40}",
    ) as again:
        yield again


def test_a_secret_that_signs_is_recorded_and_encrypted_anew(shared: Harness) -> None:
    method = ClientSecretJwt(shared.services.oauth.client_auth)

    def sent() -> Request:
        signed = jwt.encode(claims(shared, "macs"), HELD, algorithm="HS256")
        return Request({"client_assertion": signed, "client_assertion_type": ASSERTION_TYPE})

    found = method.authenticate(sent())
    with shared.app.app_context():
        (row,) = db.session.scalars(select(ClientSecretRow))
        assert (found.secret_id, found.secret_expires_at) == (row.secret_id, row.expires_at)
        assert (found.client.client_id, row.encryption_key_id) == ("macs", "k1")
        assert list(shared.services.clients.last_used._waiting) == [("macs", row.secret_id, "192.0.2.1")]  # noqa: SLF001
        shared.services.clients.last_used.flush()
        db.session.rollback()
        assert row.encryption_key_id == "k2"
    assert method.authenticate(sent()).secret_id == found.secret_id
    shared.clock.advance(days=1)
    with pytest.raises(InvalidClient) as caught:
        method.authenticate(sent())
    assert (caught.value.reason, caught.value.client_id) == ("expired_secret", "macs")


def test_as_many_macs_are_computed_for_every_client(shared: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    method, tried = ClientSecretJwt(shared.services.oauth.client_auth), []
    decrypt = EncryptedSecrets.decrypt_or_dummy

    def counted(encrypted: EncryptedSecrets, client_id: str, secret: Any) -> tuple[str, bool]:
        tried.append(client_id)
        return decrypt(encrypted, client_id, secret)

    monkeypatch.setattr(EncryptedSecrets, "decrypt_or_dummy", counted)
    for client_id in ("nobody", "macs"):
        signed = jwt.encode(claims(shared, client_id), "a wrong key" * 3, algorithm="HS256")
        with pytest.raises(InvalidClient):
            method.authenticate(Request({"client_assertion": signed, "client_assertion_type": ASSERTION_TYPE}))
        assert len(tried) == MOST_SECRETS
        tried.clear()


def test_of_keys_with_one_kid_the_right_one_is_found(harness: Harness) -> None:
    """RFC 7517 section 4.5: of other kinds for one kid each, and by mistake even of the same kind."""
    signers = [Signer(alg, signer(alg).key) for alg in ("RS256", "ES256", "EdDSA", "ES256")]
    keys = check_jwks({"keys": [one.jwk | {"kid": "2026"} for one in signers]})
    with harness.app.app_context():
        harness.store.register(_fields(auth_fields={"jwks": keys}), client_id="several", with_secret=False)
    for one in signers:
        assert authenticate(harness, one.sign(claims(harness, "several"), kid="2026")).client.client_id == "several"
    stranger = Signer("ES256", signer("ES256").key)
    assert refusal(harness, stranger.sign(claims(harness, "several"), kid="2026")) == ("assertion_signature", "several")
    assert refusal(harness, signers[1].sign(claims(harness, "several"), kid="2025")) == (
        "assertion_signature",
        "several",
    )


@pytest.mark.parametrize("bits", [2048, 3072, 4096])
def test_a_signature_is_verified_with_a_key_of_its_length_whatever_the_client_has(
    harness: Harness, monkeypatch: pytest.MonkeyPatch, bits: int
) -> None:
    keys = {"keys": [signer("RS256").jwk]}
    with harness.app.app_context():
        harness.store.register(_fields(auth_fields={"jwks": check_jwks(keys)}), client_id="rsa", with_secret=False)
    verified: list[int | None] = []
    verify = private_key_jwt.verifies

    def counted(key: Any, *arguments: Any) -> bool:
        verified.append(signature_octets(key))
        return verify(key, *arguments)

    monkeypatch.setattr(private_key_jwt, "verifies", counted)
    method = PrivateKeyJwt(harness.services.oauth.client_auth)
    stranger = Signer("RS256", RSAKey.generate_key(bits))
    for client_id in ("rsa", "nobody"):
        signed = stranger.sign(claims(harness, client_id), kid=None)
        with pytest.raises(InvalidClient) as caught:
            method.authenticate(Request({"client_assertion": signed, "client_assertion_type": ASSERTION_TYPE}))
        assert caught.value.reason == ("unknown_client" if client_id == "nobody" else "assertion_signature")
    assert verified == [bits // 8] * 4
