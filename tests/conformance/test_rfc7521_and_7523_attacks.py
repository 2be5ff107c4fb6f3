"""RFC 7521 sections 4.2, 5 and 8, RFC 7523 sections 3 and 6, RFC 8725: what attackers and half-right clients send.

For both methods where nothing else is said. That the checks of ``test_rfc7523_…`` are made is said there.
"""

import base64
import hmac
import json
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jwt
import pytest
import requests
from conformance.expected import INVALID_CLIENT, assert_refused, missing
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from jwt.algorithms import get_default_algorithms
from support.assertions import ASSERTION_TYPE, ISSUER, claims_of, form, signer
from support.publisher import Publisher, publishing
from support.server import RunningServer

from app.clients.fields import ClientFields

Sign = Callable[[bytes], bytes]


class Party(NamedTuple):
    """A client that signs."""

    client_id: str
    alg: str
    sign: Sign

    def assertion(self, claims: Any = None, **header: Any) -> str:
        """``claims`` or good ones, signed as they are."""
        claims = claims_of(self.client_id, ISSUER) if claims is None else claims
        head = {name: value for name, value in ({"alg": self.alg} | header).items() if value is not None}
        return self.compact(
            json.dumps(head).encode(), claims if isinstance(claims, bytes) else json.dumps(claims).encode()
        )

    def compact(self, header: bytes, claims: bytes) -> str:
        signed = f"{encode(header)}.{encode(claims)}"
        return f"{signed}.{encode(self.sign(signed.encode()))}"


def encode(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


KEY = signer("ES256")


@pytest.fixture(scope="module")
def keyed(server: RunningServer) -> Party:
    with server.context():
        fields = ClientFields(
            client_name="Keyed",
            token_endpoint_auth_method="private_key_jwt",
            auth_fields={"jwks": {"keys": [KEY.jwk | {"kid": KEY.kid}]}},
        )
        row, _ = server.services.clients.repository.register(fields, with_secret=False)
        algorithm = get_default_algorithms()["ES256"]
        return Party(row.client_id, "ES256", lambda signed: algorithm.sign(signed, KEY.key.private_key))


@pytest.fixture(scope="module")
def macced(server: RunningServer) -> Party:
    made = server.create_client(token_endpoint_auth_method="client_secret_jwt")
    return Party(made.client_id, "HS256", lambda signed: hmac.digest(made.secret.encode(), signed, "sha256"))


@pytest.fixture(params=["private_key_jwt", "client_secret_jwt"])
def party(request: pytest.FixtureRequest) -> Party:
    found: Party = request.getfixturevalue("keyed" if request.param == "private_key_jwt" else "macced")
    return found


@pytest.fixture
def elsewhere() -> Iterator[Publisher]:
    """A server of an attacker's, that must never be asked."""
    with publishing() as publisher:
        yield publisher


def send(server: RunningServer, assertion: str, **more: str) -> requests.Response:
    return server.post_token(form(assertion, **more))


def reason(server: RunningServer, response: requests.Response) -> str:
    assert_refused(response, INVALID_CLIENT)
    return str(server.event_of(response)["reason"])


def test_7521_4_2_client_id_is_not_needed_and_must_be_the_same(server: RunningServer, party: Party) -> None:
    assert send(server, party.assertion()).status_code == 200
    assert send(server, party.assertion(), client_id=party.client_id).status_code == 200
    for other in ("another", party.client_id.upper(), f"{party.client_id} "):
        assert reason(server, send(server, party.assertion(), client_id=other)) == "other_client_id"


def test_7521_4_2_both_parameters_are_needed(server: RunningServer, party: Party) -> None:
    whole = form(party.assertion())
    for name in ("client_assertion", "client_assertion_type"):
        without = {key: value for key, value in whole.items() if key != name}
        assert_refused(server.post_token(without), missing(name))
        assert_refused(server.post_token(whole | {name: ""}), missing(name))
    saml = ASSERTION_TYPE.replace("jwt-bearer", "saml2-bearer")
    assert reason(server, server.post_token(whole | {"client_assertion_type": saml})) == "assertion_type_unknown"


def test_7521_4_1_an_assertion_is_no_grant(server: RunningServer, party: Party) -> None:
    body = {"grant_type": "urn:ietf:params:oauth:grant-type:jwt-bearer", "assertion": party.assertion()}
    refused = server.post_token(body | form(party.assertion()) | {"grant_type": body["grant_type"]})
    assert (refused.status_code, refused.json()["error"]) == (400, "unsupported_grant_type")


def test_7523_3_1_and_2_it_speaks_of_its_own_client(
    server: RunningServer, party: Party, keyed: Party, macced: Party
) -> None:
    other = macced if party is keyed else keyed
    good = claims_of(party.client_id, ISSUER)
    assert reason(server, send(server, party.assertion(good | {"iss": ISSUER}))) == "assertion_of_another"
    assert reason(server, send(server, party.assertion(good | {"sub": other.client_id}))) in {
        "other_method_registered",
        "assertion_of_another",
    }
    for subject in (None, "", 1, [party.client_id], {"a": 1}, "é"):
        assert reason(server, send(server, party.assertion(good | {"sub": subject}))) == "unknown_client"
    assert reason(server, send(server, party.assertion(good | {"iss": None}))) == "assertion_of_another"


def test_7523_3_3_an_assertion_for_somebody_else_is_none_for_us(server: RunningServer, party: Party) -> None:
    """CVE-2025-27370 and its kin: what was made for another server, and names us beside it, is worth nothing here."""
    attacker = "https://attacker.example"
    for audience in (
        attacker,
        [ISSUER, attacker],
        [attacker, ISSUER],
        f"{ISSUER}/oauth/token?x",
        f"{ISSUER}@attacker.example",
        f"{ISSUER}.attacker.example",
        f"{ISSUER} {attacker}",
        f"{ISSUER}/oauth/token#",
        f"{ISSUER}/oauth/revoke",
        ISSUER.replace("https", "http"),
        f"{ISSUER}:443",
        [ISSUER, None],
        [[ISSUER]],
        {},
        True,
    ):
        assert (
            reason(server, send(server, party.assertion(claims_of(party.client_id, audience)))) == "assertion_audience"
        )


@pytest.mark.parametrize("name", ["exp", "iat", "nbf"])
@pytest.mark.parametrize("written", ["1e400", "-1e400", "NaN", "Infinity", '"4102444800"', "true", "[]", "{}", '""'])
def test_7523_3_4_to_6_times_are_finite_numbers(server: RunningServer, party: Party, name: str, written: str) -> None:
    claims = claims_of(party.client_id, ISSUER)
    claims.pop(name, None)
    text = json.dumps(claims)[:-1] + f', "{name}": {written}}}'
    assert reason(server, send(server, party.assertion(text.encode()))) in {"assertion_times", "assertion_malformed"}


def test_7519_2_times_may_have_fractions(server: RunningServer, party: Party) -> None:
    claims = claims_of(party.client_id, ISSUER)
    for name, written, outcome in (
        ("exp", "1e3", "assertion_expired"),
        ("exp", "4102444800.0", "assertion_too_long"),
        ("iat", "4102444800.5", "assertion_in_the_future"),
        ("nbf", "41024448e2", "assertion_in_the_future"),
        ("exp", f"{claims['exp']}.75", 200),
        ("iat", "1e3", 200),
        ("nbf", "1000.5", 200),
    ):
        rest = {key: value for key, value in claims.items() if key != name} | {"jti": uuid.uuid4().hex}
        answer = send(server, party.assertion((json.dumps(rest)[:-1] + f', "{name}": {written}}}').encode()))
        assert (answer.status_code if outcome == 200 else reason(server, answer)) == outcome


def test_7523_3_6_iat_is_optional(server: RunningServer, party: Party) -> None:
    claims = {key: value for key, value in claims_of(party.client_id, ISSUER).items() if key != "iat"}
    assertion = party.assertion(claims)
    assert send(server, assertion).status_code == 200
    assert reason(server, send(server, assertion)) == "assertion_replayed"


def test_7523_3_8_other_claims_do_not_matter(server: RunningServer, party: Party) -> None:
    claims = claims_of(party.client_id, ISSUER) | {"scope": "everything", "admin": True, "cnf": {"jkt": "x"}, "é": [1]}
    assert send(server, party.assertion(claims)).status_code == 200


def test_7523_3_10_and_jwe_what_is_encrypted_or_nested_is_refused(server: RunningServer, party: Party) -> None:
    whole = party.assertion()
    for wrong in (
        f"{whole}.x.x",
        party.assertion(json.dumps(whole).encode()),
        f"{whole}\n",
        f"{whole}=",
        whole[:-1] + "!",
    ):
        assert reason(server, send(server, wrong)) == "assertion_malformed"
    flattened = dict(zip(("protected", "payload", "signature"), whole.split("."), strict=True))
    assert reason(server, send(server, json.dumps(flattened))) == "assertion_malformed"


def test_8725_a_key_in_the_header_is_nobodys(server: RunningServer, party: Party, elsewhere: Publisher) -> None:
    mine = signer("ES256")
    elsewhere.publish(mine.jwk | {"kid": "mine"})
    claims = claims_of(party.client_id, ISSUER)
    for header in (
        {"jwk": mine.jwk},
        {"jwk": mine.jwk, "kid": None},
        {"jku": elsewhere.url, "kid": "mine"},
        {"x5u": elsewhere.url},
        {"x5c": [base64.b64encode(b"certificate").decode()]},
        {"kid": "../../../../dev/null"},
        {"kid": "x' UNION SELECT 'key' --"},
        {"kid": "x" * 3000},
        {"kid": elsewhere.url},
    ):
        given = {name: value for name, value in ({"kid": mine.kid} | header).items() if value is not None}
        forged = jwt.encode(claims, mine.key.private_key, "ES256", given)
        expected = "assertion_signature" if party.alg == "ES256" else "other_method_registered"
        assert reason(server, send(server, forged)) == expected
    # Beside a good signature they do not matter, and are not followed.
    good = party.assertion(jku=elsewhere.url, x5u=elsewhere.url, jwk=mine.jwk)
    assert send(server, good).status_code == 200
    assert elsewhere.asked == []


@pytest.mark.parametrize(
    ("header", "why"),
    [
        ({"crit": ["b64"], "b64": False}, "assertion_other_type"),
        ({"crit": []}, "assertion_other_type"),
        ({"crit": None, "typ": "JWS"}, "assertion_other_type"),
        ({"typ": "at+jwt"}, "assertion_other_type"),
        ({"typ": "application/at+jwt"}, "assertion_other_type"),
        ({"typ": "token-introspection+jwt"}, "assertion_other_type"),
        ({"typ": ["JWT"]}, "assertion_other_type"),
        ({"typ": ""}, "assertion_other_type"),
    ],
)
def test_8725_3_11_what_is_for_something_else_is_refused(
    server: RunningServer, party: Party, header: dict[str, Any], why: str
) -> None:
    assert reason(server, send(server, party.assertion(**header))) == why


@pytest.mark.parametrize(
    "alg", ["none", "nOnE", "NONE", "", None, 0, ["ES256"], {"alg": "ES256"}, "RS512", "HS1", "dir"]
)
def test_8725_3_1_and_2_the_algorithm_is_the_clients(server: RunningServer, party: Party, alg: Any) -> None:
    for signature in ("", "AA", encode(party.sign(b"x"))):
        head, claims, _ = party.assertion(alg=alg).split(".")
        assert reason(server, send(server, f"{head}.{claims}.{signature}")) in {
            "assertion_malformed",
            "assertion_algorithm",
            "other_method_registered",
        }


def test_8725_3_2_signatures_that_some_libraries_have_taken(server: RunningServer, keyed: Party) -> None:
    head, claims, good = keyed.assertion().split(".")
    raw = base64.urlsafe_b64decode(good + "==")
    order = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
    first, second = int.from_bytes(raw[:32]), int.from_bytes(raw[32:])
    wrong = {
        "zeros (CVE-2022-21449)": bytes(64),
        "the order of the curve": order.to_bytes(32) * 2,
        "one beyond it": (first + order).to_bytes(33)[-32:] + raw[32:] if first + order < 2**256 else bytes(64),
        "DER": encode_dss_signature(first, second),
        "too long": raw + b"\0",
        "too short": raw[:-1],
        "a zero in front": b"\0" + raw[:32] + b"\0" + raw[32:],
    }
    for what, signature in wrong.items():
        assert reason(server, send(server, f"{head}.{claims}.{encode(signature)}")) == "assertion_signature", what
    assert send(server, f"{head}.{claims}.{good}").status_code == 200, "and none of it has used the good one up"


def test_7523_the_same_assertion_written_in_another_way_is_the_same(server: RunningServer, keyed: Party) -> None:
    """Its ``jti`` is what is used up: neither ECDSA's second signature nor other blanks make it new."""
    claims = claims_of(keyed.client_id, ISSUER)
    assert send(server, keyed.assertion(claims)).status_code == 200
    order = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
    head, payload, good = keyed.assertion(claims).split(".")
    raw = base64.urlsafe_b64decode(good + "==")
    malleable = encode(raw[:32] + (order - int.from_bytes(raw[32:])).to_bytes(32))
    for again in (
        f"{head}.{payload}.{malleable}",
        keyed.assertion(json.dumps(claims, indent=2).encode()),
        keyed.assertion(dict(reversed(claims.items()))),
        keyed.assertion(claims, typ="JWT"),
        keyed.assertion(claims | {"exp": claims["exp"] + 60}),
    ):
        assert reason(server, send(server, again)) == "assertion_replayed"


def test_7519_4_of_a_claim_that_is_there_twice_the_last_counts(server: RunningServer, party: Party) -> None:
    now = int(time.time())
    text = json.dumps(claims_of(party.client_id, ISSUER))[:-1]
    late = f'{text}, "exp": {now - 3600}}}'.encode()
    assert reason(server, send(server, party.assertion(late))) == "assertion_expired"
    abroad = f'{text}, "aud": "https://attacker.example"}}'.encode()
    assert reason(server, send(server, party.assertion(abroad))) == "assertion_audience"


def test_7521_8_3_an_assertion_stands_in_no_log_and_no_answer(server: RunningServer, party: Party) -> None:
    good, wrong = party.assertion(), party.assertion(typ="at+jwt")
    for assertion in (good, wrong):
        answer = send(server, assertion, scope=assertion[:200])
        for part in assertion.split(".")[1:]:
            assert part not in answer.text
    logged = server.stdout_path.read_text() + server.stderr_path.read_text()
    for assertion in (good, wrong):
        for part in assertion.split(".")[1:]:
            assert part not in logged


@pytest.mark.parametrize("size", [8 * 1024, 11 * 1024])
def test_what_is_large_is_refused_before_it_is_read(server: RunningServer, party: Party, size: int) -> None:
    claims = claims_of(party.client_id, ISSUER) | {"padding": "x" * (size * 3 // 4)}
    assert reason(server, send(server, party.assertion(claims))) == "assertion_malformed"
