"""RFC 7523 sections 2.2 and 3, RFC 7521 section 4.2, OpenID Connect Core section 9: a client proves itself by a key."""

import base64
import hmac
import json
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jwt
import pytest
import requests
from conformance.expected import (
    INVALID_CLIENT,
    SEVERAL_AUTHENTICATIONS,
    assert_refused,
    in_query,
    missing,
    repeated,
)
from support.assertions import ASSERTION_TYPE, ISSUER, Signer, by_hand, claims_of, form, signed_as_ed25519, signer
from support.server import RunningServer, basic

from app.clients.fields import ClientFields

ALGS = ["RS256", "PS256", "ES256", "EdDSA"]
METHOD = "private_key_jwt"
TOKEN_ENDPOINT = f"{ISSUER}/oauth/token"


class Keyed(NamedTuple):
    """A client with its keys."""

    client_id: str
    signers: tuple[Signer, ...]

    def assertion(self, audience: Any = ISSUER, header: dict[str, Any] | None = None, **claims: Any) -> str:
        return self.signers[0].sign(claims_of(self.client_id, audience, **claims), **(header or {}))


def make(server: RunningServer, *signers: Signer, **fields: Any) -> Keyed:
    audience = fields.pop("assertion_audience", None)
    auth_fields = {"jwks": {"keys": [one.jwk | {"kid": one.kid} for one in signers]}}
    if audience:
        auth_fields["assertion_audience"] = audience
    with server.context():
        row, _ = server.services.clients.repository.register(
            ClientFields(
                client_name="A keyed one", token_endpoint_auth_method=METHOD, auth_fields=auth_fields, **fields
            ),
            with_secret=False,
        )
        return Keyed(row.client_id, signers)


@pytest.fixture(scope="module")
def client(server: RunningServer) -> Keyed:
    return make(server, signer(), scope=("read",))


def assert_in(server: RunningServer, response: requests.Response, client: Keyed) -> None:
    assert response.status_code == 200, response.text
    claims = server.verify(response.json()["access_token"])
    assert claims["sub"] == client.client_id
    event = server.event_of(response)
    assert (event["auth_method"], "secret_id" in event) == (METHOD, False)


def reason(server: RunningServer, response: requests.Response) -> str:
    assert_refused(response, INVALID_CLIENT)
    return str(server.event_of(response)["reason"])


@pytest.mark.parametrize("alg", ALGS)
@pytest.mark.parametrize("with_kid", [True, False])
def test_2_2_every_algorithm_is_taken_with_a_kid_and_without(
    server: RunningServer, alg: str, *, with_kid: bool
) -> None:
    client = make(server, signer(alg))
    assertion = client.assertion(header={} if with_kid else {"kid": None})
    assert_in(server, server.post_token(form(assertion)), client)


@pytest.mark.parametrize(
    "audience", [ISSUER, TOKEN_ENDPOINT, [ISSUER], [TOKEN_ENDPOINT], [ISSUER, TOKEN_ENDPOINT], [ISSUER, ISSUER]]
)
def test_3_3_the_audience_is_the_issuer_or_the_token_endpoint(
    server: RunningServer, client: Keyed, audience: Any
) -> None:
    assert_in(server, server.post_token(form(client.assertion(audience))), client)


@pytest.mark.parametrize(
    "audience",
    [
        None,
        "",
        [],
        f"{ISSUER}/",
        ISSUER.upper(),
        f"{ISSUER}/oauth/token/",
        f"{ISSUER}/oauth/introspect",
        "https://other.example",
        [ISSUER, "https://other.example"],
        [ISSUER, 1],
        [[ISSUER]],
        {"aud": ISSUER},
        1,
        f" {ISSUER}",
        f"{ISSUER},https://other.example",
    ],
)
def test_3_3_any_other_audience_is_refused(server: RunningServer, client: Keyed, audience: Any) -> None:
    # What a strict library would not sign is signed as it is.
    claims = {**claims_of(client.client_id), "aud": audience}
    if audience is None:
        del claims["aud"]
    assertion = jws(client.signers[0], claims)
    assert reason(server, server.post_token(form(assertion))) == "assertion_audience"


def test_3_3_a_client_may_narrow_the_audience_to_the_issuer(server: RunningServer) -> None:
    narrow = make(server, signer(), assertion_audience="issuer")
    assert_in(server, server.post_token(form(narrow.assertion(ISSUER))), narrow)
    assert reason(server, server.post_token(form(narrow.assertion(TOKEN_ENDPOINT)))) == "assertion_audience"


def jws(one: Signer, claims: Any, **header: Any) -> str:
    """``claims`` signed as they are, whatever they are."""
    from jwt.algorithms import get_default_algorithms  # noqa: PLC0415 - Here alone.

    head = {"alg": one.alg, "kid": one.kid, **header}
    payload = claims if isinstance(claims, bytes) else json.dumps(claims).encode()
    encode = lambda raw: base64.urlsafe_b64encode(raw).rstrip(b"=")  # noqa: E731
    signed = b".".join((encode(json.dumps(head).encode()), encode(payload)))
    signature = get_default_algorithms()[one.alg].sign(signed, one.key.private_key)
    return b".".join((signed, encode(signature))).decode()


NOW = time.time


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"iss": "another"}, "assertion_of_another"),
        ({"iss": None}, "assertion_of_another"),
        ({"iss": 1}, "assertion_of_another"),
        ({"exp": None}, "assertion_times"),
        ({"exp": "4102444800"}, "assertion_times"),
        ({"exp": 4102444800.5}, "assertion_too_long"),
        ({"exp": True}, "assertion_times"),
        ({"exp": [1]}, "assertion_times"),
        ({"exp": -1}, "assertion_expired"),
        ({"exp": 0}, "assertion_expired"),
        ({"exp": 10**30}, "assertion_too_long"),
        ({"iat": "1"}, "assertion_times"),
        ({"iat": 10**30}, "assertion_in_the_future"),
        ({"nbf": "1"}, "assertion_times"),
        ({"nbf": 10**30}, "assertion_in_the_future"),
        ({"jti": None}, "assertion_without_id"),
        ({"jti": ""}, "assertion_without_id"),
        ({"jti": 1}, "assertion_without_id"),
        ({"jti": "x" * 256}, "assertion_without_id"),
    ],
)
def test_3_every_claim_is_checked(server: RunningServer, client: Keyed, changes: dict[str, Any], why: str) -> None:
    claims = {name: value for name, value in (claims_of(client.client_id) | changes).items() if value is not None}
    assert reason(server, server.post_token(form(jws(client.signers[0], claims)))) == why


@pytest.mark.parametrize(
    ("seconds", "why"),
    [
        ({"exp": -50, "iat": -200}, None),
        ({"exp": -70, "iat": -200}, "assertion_expired"),
        ({"exp": 3600}, None),
        ({"exp": 3700}, "assertion_too_long"),
        ({"iat": 50}, None),
        ({"iat": 90}, "assertion_in_the_future"),
        ({"nbf": 50}, None),
        ({"nbf": 90}, "assertion_in_the_future"),
    ],
)
def test_3_4_clocks_may_differ_by_a_minute(
    server: RunningServer, client: Keyed, seconds: dict[str, int], why: str | None
) -> None:
    claims = claims_of(client.client_id) | {name: int(NOW()) + off for name, off in seconds.items()}
    response = server.post_token(form(jws(client.signers[0], claims)))
    if why:
        assert reason(server, response) == why
    else:
        assert_in(server, response, client)


@pytest.mark.parametrize(
    "payload", [b'{"exp": 1e400}', b"[]", b"null", b"\xff", b"", b"{" * 5000, b'{"exp": 1' + b"0" * 5000 + b"}"]
)
def test_a_payload_that_is_no_object_is_refused(server: RunningServer, client: Keyed, payload: bytes) -> None:
    found = reason(server, server.post_token(form(jws(client.signers[0], payload))))
    assert found in {"assertion_malformed", "unknown_client"}


@pytest.mark.parametrize(
    "assertion",
    ["x", "a.b", "a.b.c", "a.b.c.d", "é.é.é", "..", " a.b.c", "eyJ.eyJ.eyJ", "x" * 9000],
)
def test_what_is_no_jws_is_refused(server: RunningServer, assertion: str) -> None:
    assert reason(server, server.post_token(form(assertion))) == "assertion_malformed"


def test_3_9_a_signature_must_be_the_clients(server: RunningServer, client: Keyed) -> None:
    stranger, other = signer(), make(server, signer())
    good = client.assertion()
    head, claims, signature = good.split(".")
    cases = {
        "another key": stranger.sign(claims_of(client.client_id), kid=client.signers[0].kid),
        "another client's key": other.signers[0].sign(claims_of(client.client_id)),
        "a changed signature": f"{head}.{claims}.{signature[:-6]}AAAAAA",
        "a signature of something else": f"{head}.{client.assertion(jti='x').split('.')[1]}.{signature}",
        "an unknown kid": client.assertion(header={"kid": "another"}),
        "a kid of another type": jws(client.signers[0], claims_of(client.client_id), kid=[client.signers[0].kid]),
    }
    for what, assertion in cases.items():
        assert reason(server, server.post_token(form(assertion))) == "assertion_signature", what


def test_9864_2_2_ed25519_is_eddsa(server: RunningServer) -> None:
    client = make(server, signer("EdDSA"))
    header = {"kid": client.signers[0].kid}
    good = signed_as_ed25519(client.signers[0], header, claims_of(client.client_id))
    assert_in(server, server.post_token(form(good)), client)
    forged = signed_as_ed25519(signer("EdDSA"), header, claims_of(client.client_id))
    assert reason(server, server.post_token(form(forged))) == "assertion_signature"
    of_another_kind = make(server, signer("ES256"))
    wrong = signed_as_ed25519(client.signers[0], {}, claims_of(of_another_kind.client_id))
    assert reason(server, server.post_token(form(wrong))) == "assertion_signature"


def test_8_algorithms_are_of_our_choice(server: RunningServer, client: Keyed) -> None:
    claims, key = claims_of(client.client_id), client.signers[0]
    public = key.key.as_pem(private=False)
    for alg in ("none", "None", "RS384", "RS1", "ES384", "", None, 1, ["RS256"], "hs256"):
        header = {"alg": alg, "kid": key.kid}
        assert reason(server, server.post_token(form(by_hand(header, claims)))) == "assertion_algorithm"
    # A MAC is of another method.
    for alg in ("HS256", "HS512"):
        header = {"alg": alg, "kid": key.kid}
        assert reason(server, server.post_token(form(by_hand(header, claims)))) == "other_method_registered"
    # What a verifier accepts that takes the public key for a shared secret.
    signed = by_hand({"alg": "HS256", "kid": key.kid}, claims).rpartition(".")[0]
    mac = hmac.digest(public, signed.encode(), "sha256")
    confused = f"{signed}.{base64.urlsafe_b64encode(mac).rstrip(b'=').decode()}"
    assert reason(server, server.post_token(form(confused))) == "other_method_registered"
    # The algorithm of another kind of key than the one that is named.
    assert reason(server, server.post_token(form(by_hand({"alg": "ES256", "kid": key.kid}, claims)))) == (
        "assertion_signature"
    )


@pytest.mark.parametrize("typ", [None, "JWT", "client-authentication+jwt", "application/client-authentication+JWT"])
def test_a_type_for_this_purpose_is_taken(server: RunningServer, client: Keyed, typ: str | None) -> None:
    assert_in(server, server.post_token(form(client.assertion(header={"typ": typ}))), client)


@pytest.mark.parametrize("header", [{"typ": "at+jwt"}, {"typ": "dpop+jwt"}, {"typ": 1}, {"crit": ["exp"], "exp": 1}])
def test_another_purpose_is_refused(server: RunningServer, client: Keyed, header: dict[str, Any]) -> None:
    assertion = jws(client.signers[0], claims_of(client.client_id), **header)
    assert reason(server, server.post_token(form(assertion))) == "assertion_other_type"


def test_an_access_token_is_no_assertion(server: RunningServer, client: Keyed) -> None:
    token = server.post_token(form(client.assertion())).json()["access_token"]
    assert reason(server, server.post_token(form(token))).startswith("assertion_")


def test_3_7_an_assertion_is_good_once(server: RunningServer, client: Keyed) -> None:
    assertion = client.assertion()
    assert_in(server, server.post_token(form(assertion)), client)
    for _ in range(3):
        assert reason(server, server.post_token(form(assertion))) == "assertion_replayed"
    # Another client's of the same id is another one.
    other = make(server, signer())
    jti = jwt.decode(assertion, options={"verify_signature": False})["jti"]
    assert_in(server, server.post_token(form(other.assertion(jti=jti))), other)


def test_3_7_of_many_at_once_exactly_one_gets_a_token(server: RunningServer, client: Keyed) -> None:
    assertion = client.assertion()
    with ThreadPoolExecutor(20) as pool:
        statuses = list(pool.map(lambda _: server.post_token(form(assertion)).status_code, range(100)))
    assert sorted(statuses) == [200] + [401] * 99


def test_3_7_what_is_refused_uses_nothing_up(server: RunningServer, client: Keyed) -> None:
    assertion = client.assertion()
    response = server.post_token(form(assertion, client_id="another"))
    assert reason(server, response) == "other_client_id"
    assert_in(server, server.post_token(form(assertion, client_id=client.client_id)), client)


def test_an_unknown_client_and_others_are_refused_alike(server: RunningServer, client: Keyed) -> None:
    by_secret = server.create_client()
    ended = make(server, signer())
    with server.context():
        server.services.clients.repository.disable(ended.client_id)
    cases = {
        "unknown_client": signer().sign(claims_of("nobody-at-all")),
        "disabled_client": ended.assertion(),
        "other_method_registered": signer().sign(claims_of(by_secret.client_id)),
    }
    for why, assertion in cases.items():
        assert reason(server, server.post_token(form(assertion))) == why
    response = server.post_token(headers={"Authorization": basic(client.client_id, "x" * 40)})
    assert reason(server, response) == "other_method_registered"


def test_rfc7521_4_2_the_parameters_are_read_strictly(server: RunningServer, client: Keyed) -> None:
    good = form(client.assertion())
    typeless = {name: value for name, value in good.items() if name != "client_assertion_type"}
    assert_refused(server.post_token(typeless), missing("client_assertion_type"))
    bare = {"grant_type": "client_credentials", "client_assertion_type": ASSERTION_TYPE}
    assert_refused(server.post_token(bare), missing("client_assertion"))
    assert reason(server, server.post_token(good | {"client_assertion_type": "urn:other"})) == "assertion_type_unknown"
    assert_refused(server.post_token([*good.items(), ("client_assertion", "x")]), repeated("client_assertion"))
    assert_refused(server.post_token(good, params={"client_assertion": "x"}), in_query("client_assertion"))
    for more in ({"client_secret": "x" * 40, "client_id": client.client_id},):
        assert_refused(server.post_token(good | more), SEVERAL_AUTHENTICATIONS)
    both = server.post_token(good, headers={"Authorization": basic(client.client_id, "x" * 40)})
    assert_refused(both, SEVERAL_AUTHENTICATIONS)


def test_keys_are_rotated_with_an_overlap(server: RunningServer, tmp_path: Any) -> None:
    old, new = signer(), signer("ES256")
    client = make(server, old)
    (tmp_path / "new.json").write_text(json.dumps(new.jwk | {"kid": new.kid}))
    assert server.flask("clients", "keys-add", client.client_id, str(tmp_path / "new.json")).returncode == 0
    for one in (old, new):
        assert_in(server, server.post_token(form(one.sign(claims_of(client.client_id)))), client)
    assert server.flask("clients", "keys-remove", client.client_id, old.kid).returncode == 0
    assert reason(server, server.post_token(form(old.sign(claims_of(client.client_id))))) == "assertion_signature"
    assert_in(server, server.post_token(form(new.sign(claims_of(client.client_id)))), client)


def test_introspection_and_revocation_take_assertions_too(server: RunningServer, client: Keyed) -> None:
    token = server.post_token(form(client.assertion())).json()["access_token"]
    for path, expected in (("introspect", True), ("revoke", None), ("introspect", False)):
        body = form(client.assertion(TOKEN_ENDPOINT)) | {"token": token}
        answer = requests.post(f"{server.url}/oauth/{path}", body, timeout=10)
        assert answer.status_code == 200
        assert answer.json().get("active") is expected
