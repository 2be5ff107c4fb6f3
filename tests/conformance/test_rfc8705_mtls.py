"""RFC 8705 and RFC 9440: client certificates that a proxy forwards, and tokens bound to them."""

import base64
import datetime as dt
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from conformance.expected import INVALID_CLIENT, MALFORMED, Granted, assert_answer, assert_refused, invalid_request
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from joserfc.jwk import ECKey
from sqlalchemy import update
from support.assertions import signer
from support.certificates import (
    DAY,
    Certified,
    address,
    certify,
    client_certificate,
    revocations,
    rfc9440,
    subject,
)
from support.dpop import sign_proof
from support.publisher import publishing
from support.server import NewClient, RunningServer, running_server, wait_until

from app.clients.fields import ClientFields
from app.database.models import ClientKeySetRow, db
from app.oauth.client_auth.tls import SelfSignedTlsClientAuth

MTLS = "https://mtls.example.com"
MISSING = invalid_request("The request must come with a client certificate over TLS.")


@pytest.fixture(scope="module")
def anchors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file with the authorities that the server trusts."""
    path = tmp_path_factory.mktemp("anchors") / "ca.pem"
    path.write_text(certify("Nobody", is_authority=True).pem)
    return path


@pytest.fixture(scope="module")
def behind(tmp_path_factory: pytest.TempPathFactory, anchors: Path) -> Iterator[RunningServer]:
    """A server whose proxy is on this machine: what a test sends, the proxy sends."""
    settings = {
        "TOKENHOUSE_TRUSTED_PROXIES": "127.0.0.1",
        "TOKENHOUSE_MTLS_URL": MTLS,
        "TOKENHOUSE_MTLS_TRUST_ANCHORS": str(anchors),
    }
    with running_server(tmp_path_factory.mktemp("mtls"), "--workers", "2", **settings) as running:
        yield running


@pytest.fixture(scope="module")
def certificate() -> Certified:
    return client_certificate("a caller")


@pytest.fixture(scope="module")
def bound(behind: RunningServer) -> NewClient:
    """A client with a secret, whose tokens are bound to its certificate."""
    return behind.create_client(scope=("read", "write"), sender_constraints=("mtls",))


@pytest.fixture(scope="module")
def authority(anchors: Path) -> Certified:
    made = certify("An authority", is_authority=True)
    anchors.write_text(made.pem)
    return made


def register(server: RunningServer, method: str, **auth_fields: Any) -> str:
    """A client of ``method``; returns its id."""
    fields = ClientFields(
        "By certificate", ("read", "write"), token_endpoint_auth_method=method, auth_fields=auth_fields
    )
    with server.context():
        row, _ = server.services.clients.repository.register(fields, with_secret=False)
        return row.client_id


def registered(of: Certified) -> dict[str, Any]:
    """What is stored of a certificate."""
    dates = {"not_before": of.certificate.not_valid_before_utc, "not_after": of.certificate.not_valid_after_utc}
    times = {name: int(date.timestamp()) for name, date in dates.items()}
    return {"x5t#S256": of.thumbprint, "subject": "CN=x", **times}


def by_certificate(
    server: RunningServer, client_id: str, *chain: Certified, headers: dict[str, str] | None = None, **more: str
) -> requests.Response:
    body = {"grant_type": "client_credentials", "client_id": client_id, **more}
    return server.post_token(body, headers=rfc9440(*chain) | (headers or {}))


def assert_in(server: RunningServer, answer: requests.Response, method: str, certificate: Certified) -> None:
    assert_answer(answer, Granted())
    event = server.event_of(answer)
    assert (event["auth_method"], event["cnf"]) == (method, {"x5t#S256": certificate.thumbprint})
    claims = server.verify(answer.json()["access_token"])
    assert (claims["sub"], claims["cnf"]) == (event["client_id"], event["cnf"])


def refused_for(server: RunningServer, answer: requests.Response) -> tuple[str, str | None]:
    assert_refused(answer, INVALID_CLIENT)
    event = server.event_of(answer)
    return event["reason"], event.get("detail")


def post(
    server: RunningServer, client: NewClient, of: Certified | None, data: Any = None, **headers: str
) -> requests.Response:
    certified = rfc9440(of) if of else {}
    return server.post_token(data, headers={"Authorization": client.basic, **certified, **headers})


def reason(server: RunningServer, answer: requests.Response) -> str:
    return str(server.event_of(answer)["reason"])


def test_3_1_a_token_is_bound_to_the_certificate(
    behind: RunningServer, bound: NewClient, certificate: Certified
) -> None:
    answer = post(behind, bound, certificate)
    assert_answer(answer, Granted())
    cnf = {"x5t#S256": certificate.thumbprint}
    assert behind.verify(answer.json()["access_token"])["cnf"] == cnf
    assert behind.event_of(answer)["cnf"] == cnf


def test_3_2_introspection_shows_the_certificate(
    behind: RunningServer, bound: NewClient, certificate: Certified
) -> None:
    token = post(behind, bound, certificate).json()["access_token"]
    headers = {"Authorization": bound.basic}
    described = requests.post(f"{behind.url}/oauth/introspect", {"token": token}, headers=headers, timeout=10).json()
    assert (described["token_type"], described["cnf"]) == ("Bearer", {"x5t#S256": certificate.thumbprint})


def test_3_3_and_5_the_metadata(behind: RunningServer, server: RunningServer) -> None:
    def read(one: RunningServer) -> dict[str, Any]:
        return dict(requests.get(f"{one.url}/.well-known/oauth-authorization-server", timeout=10).json())

    metadata = read(behind)
    assert metadata["tls_client_certificate_bound_access_tokens"] is True
    assert metadata["mtls_endpoint_aliases"] == {
        "token_endpoint": f"{MTLS}/oauth/token",
        "introspection_endpoint": f"{MTLS}/oauth/introspect",
        "revocation_endpoint": f"{MTLS}/oauth/revoke",
    }
    # Without a proxy no certificate can come.
    assert not read(server).keys() & {"tls_client_certificate_bound_access_tokens", "mtls_endpoint_aliases"}


def test_a_client_whose_tokens_are_bound_gets_none_without_a_certificate(
    behind: RunningServer, bound: NewClient
) -> None:
    for headers in ({}, {"Client-Cert": ""}):
        answer = post(behind, bound, None, **headers)
        assert_refused(answer, MISSING)
        assert reason(behind, answer) == "certificate_missing"


def test_any_other_client_gets_a_bearer_token_whether_it_has_a_certificate_or_not(
    behind: RunningServer, certificate: Certified
) -> None:
    client = behind.create_client(scope=("read", "write"))
    for of in (None, certificate):
        answer = post(behind, client, of)
        assert_answer(answer, Granted())
        assert "cnf" not in behind.verify(answer.json()["access_token"])


def test_a_certificate_does_not_replace_a_secret(
    behind: RunningServer, bound: NewClient, certificate: Certified
) -> None:
    wrong = NewClient(bound.client_id, "wrong")
    assert_refused(post(behind, wrong, certificate), INVALID_CLIENT)
    body = {"grant_type": "client_credentials", "client_id": bound.client_id}
    assert_refused(behind.post_token(body, headers=rfc9440(certificate)), INVALID_CLIENT)


def test_a_token_may_be_bound_to_a_certificate_and_to_a_key(behind: RunningServer, certificate: Certified) -> None:
    client, key = behind.create_client(sender_constraints=("dpop", "mtls")), signer("ES256")
    for htu in (f"{behind.settings.issuer}/oauth/token", f"{MTLS}/oauth/token"):
        answer = post(behind, client, certificate, DPoP=sign_proof(key, htu=htu))
        assert (answer.status_code, answer.json()["token_type"]) == (200, "DPoP")
        claims = behind.verify(answer.json()["access_token"])
        assert claims["cnf"] == {"jkt": key.kid, "x5t#S256": certificate.thumbprint}


def test_9440_2_a_header_in_another_format_is_refused(behind: RunningServer, bound: NewClient) -> None:
    answer = post(behind, bound, None, **{"Client-Cert": "x"})
    assert_refused(answer, MALFORMED)
    assert reason(behind, answer) == "certificate_malformed"


def test_9440_4_the_header_of_an_untrusted_peer_is_refused_at_each_endpoint(
    server: RunningServer, certificate: Certified
) -> None:
    client = server.create_client(introspects=("*",))
    for path in ("token", "introspect", "revoke", "revocations"):
        for headers in (rfc9440(certificate), {"Client-Cert": ""}):
            answer = requests.post(
                f"{server.url}/oauth/{path}",
                {"grant_type": "client_credentials", "token": "x"},
                headers={"Authorization": client.basic, **headers},
                timeout=10,
            )
            assert_refused(answer, MALFORMED)
            assert reason(server, answer) == "certificate_from_untrusted_peer"


def test_9440_4_a_header_with_an_underscore_is_not_the_header(behind: RunningServer, bound: NewClient) -> None:
    value = rfc9440(client_certificate("x"))["Client-Cert"].encode()
    answer = behind.send_form(
        b"grant_type=client_credentials", b"Authorization: " + bound.basic.encode(), b"Client_Cert: " + value
    )
    assert_refused(answer, MISSING)


def test_9440_2_two_headers_are_refused(behind: RunningServer, bound: NewClient, certificate: Certified) -> None:
    """A proxy that adds its own and keeps the caller's must not work by chance."""
    line = b"Client-Cert: " + rfc9440(certificate)["Client-Cert"].encode()
    answer = behind.send_form(b"grant_type=client_credentials", b"Authorization: " + bound.basic.encode(), line, line)
    assert_refused(answer, MALFORMED)


NAMED = subject((NameOID.ORGANIZATION_NAME, "Example, Inc."), (NameOID.COMMON_NAME, "billing"))
DN = {"tls_client_auth_subject_dn": "CN=billing,O=Example\\, Inc."}
TLS, SELF_SIGNED = "tls_client_auth", "self_signed_tls_client_auth"


def test_2_1_a_client_is_known_by_the_name_that_an_authority_certified(
    behind: RunningServer, authority: Certified
) -> None:
    client_id = register(behind, TLS, **DN)
    good = client_certificate(NAMED, authority)
    assert_in(behind, by_certificate(behind, client_id, good), TLS, good)
    # Signed by an intermediate, which the proxy forwards too.
    between = certify("Between", authority, is_authority=True)
    deep = client_certificate(NAMED, between)
    assert_in(behind, by_certificate(behind, client_id, deep, between), TLS, deep)
    reason, detail = refused_for(behind, by_certificate(behind, client_id, deep))
    assert (reason, str(detail)[:22]) == ("certificate_untrusted", "its chain is not valid")


@pytest.mark.parametrize(
    ("kind", "registered_name", "name"),
    [
        ("dns", "billing.example.com", x509.DNSName("Billing.example.com")),
        ("uri", "spiffe://example.com/billing", x509.UniformResourceIdentifier("spiffe://example.com/billing")),
        ("ip", "192.0.2.1", address("192.0.2.1")),
        ("email", "ops@example.com", x509.RFC822Name("ops@EXAMPLE.com")),
    ],
)
def test_2_1_2_by_any_kind_of_name(
    behind: RunningServer, authority: Certified, kind: str, registered_name: str, name: x509.GeneralName
) -> None:
    client_id = register(behind, TLS, **{f"tls_client_auth_san_{kind}": registered_name})
    good = client_certificate("x", authority, alternatives=[name])
    assert_in(behind, by_certificate(behind, client_id, good), TLS, good)
    for other in (
        client_certificate("x", authority),
        client_certificate(registered_name, authority),
        client_certificate("x", authority, alternatives=[x509.DNSName("other.example.com")]),
        # Nobody is known by the name that stands in for those that clients have not registered.
        client_certificate(NOBODY, authority),
    ):
        assert refused_for(behind, by_certificate(behind, client_id, other))[0] == "certificate_name_mismatch"


NOBODY = subject((NameOID.COUNTRY_NAME, "ZZ"), (NameOID.ORGANIZATION_NAME, "nobody"), (NameOID.COMMON_NAME, "nobody"))


def test_2_1_a_certificate_of_an_untrusted_authority_is_refused(behind: RunningServer, authority: Certified) -> None:
    client_id = register(behind, TLS, **DN)
    wrong = {
        "self-signed": client_certificate(NAMED),
        "by another": client_certificate(NAMED, certify("An authority", is_authority=True)),
        "by a client": client_certificate(NAMED, client_certificate("a client", authority)),
        "old": client_certificate(NAMED, authority, not_after=dt.datetime.now(dt.UTC) - DAY / 2),
        "for servers": certify(NAMED, authority, usages=[ExtendedKeyUsageOID.SERVER_AUTH]),
    }
    for kind, certificate in wrong.items():
        reason, detail = refused_for(behind, by_certificate(behind, client_id, certificate))
        assert (reason, str(detail)[:22]) == ("certificate_untrusted", "its chain is not valid"), kind
        assert "billing" not in str(detail)


def test_2_2_a_registered_certificate_needs_no_authority(behind: RunningServer) -> None:
    old, new = client_certificate("old"), client_certificate("new")
    client_id = register(behind, SELF_SIGNED, certificates=[registered(old), registered(new)])
    for certificate in (old, new):
        assert_in(behind, by_certificate(behind, client_id, certificate), SELF_SIGNED, certificate)
    other = client_certificate("old")
    refused = refused_for(behind, by_certificate(behind, client_id, other))
    assert refused == ("certificate_unknown", f"its x5t#S256 is {other.thumbprint}")


def test_2_2_a_registered_certificate_ends(behind: RunningServer) -> None:
    now = dt.datetime.now(dt.UTC)
    expired, future = client_certificate("a", not_after=now - DAY / 2), client_certificate("a", not_before=now + DAY)
    client_id = register(behind, SELF_SIGNED, certificates=[registered(expired), registered(future)])
    assert refused_for(behind, by_certificate(behind, client_id, expired)) == (
        "certificate_untrusted",
        "it has expired",
    )
    assert refused_for(behind, by_certificate(behind, client_id, future)) == (
        "certificate_untrusted",
        "it is not valid yet",
    )


def test_2_2_2_the_certificates_may_be_in_the_clients_key_set(behind: RunningServer) -> None:
    own = client_certificate("a")
    jwk = ECKey(own.key, own.key, {}).as_dict(private=False) | {"x5c": [base64.b64encode(own.der).decode()]}
    client_id = register(behind, SELF_SIGNED, **SelfSignedTlsClientAuth.check_fields({"jwks": {"keys": [jwk]}}))
    assert_in(behind, by_certificate(behind, client_id, own), SELF_SIGNED, own)
    assert refused_for(behind, by_certificate(behind, client_id, client_certificate("a")))[0] == "certificate_unknown"


def test_2_2_2_a_new_certificate_in_a_published_key_set_is_found(behind: RunningServer) -> None:
    old, new = client_certificate("old"), client_certificate("new")

    def jwk(of: Certified) -> dict[str, Any]:
        return ECKey(of.key, of.key, {}).as_dict(private=False) | {"x5c": [base64.b64encode(of.der).decode()]}

    with publishing() as publisher:
        publisher.publish(jwk(old), max_age=600)
        words = ("clients", "create", "Publishes", "--auth-method", SELF_SIGNED, "--scope", "read write")
        client_id = behind.flask_json(*words, "--jwks-uri", publisher.url)["client_id"]
        assert_in(behind, by_certificate(behind, client_id, old), SELF_SIGNED, old)
        publisher.publish(jwk(old), jwk(new), max_age=600)
        with behind.context(), db.engine.begin() as connection:
            # As if it had been fetched a while ago: a set is not fetched again within a minute.
            long_ago = dt.datetime.now(dt.UTC) - DAY
            connection.execute(update(ClientKeySetRow).values(tried_at=long_ago))
        assert refused_for(behind, by_certificate(behind, client_id, new))[0] == "certificate_unknown"
        wait_until(lambda: by_certificate(behind, client_id, new).status_code == 200)
        publisher.publish(jwk(new), max_age=600)
        behind.flask_ok("clients", "keys", client_id, "--fetch")
        assert refused_for(behind, by_certificate(behind, client_id, old))[0] == "certificate_unknown"


def test_2_every_refusal_is_the_same(behind: RunningServer, authority: Certified) -> None:
    good = client_certificate(NAMED, authority)
    named, self_signed = register(behind, TLS, **DN), register(behind, SELF_SIGNED, certificates=[registered(good)])
    with_secret, disabled = behind.create_client().client_id, register(behind, TLS, **DN)
    behind.flask_ok("clients", "disable", disabled)
    assert refused_for(behind, by_certificate(behind, "nobody", good))[0] == "unknown_client"
    assert refused_for(behind, by_certificate(behind, "é", good))[0] == "unknown_client"
    assert refused_for(behind, by_certificate(behind, with_secret, good))[0] == "other_method_registered"
    assert refused_for(behind, by_certificate(behind, disabled, good))[0] == "disabled_client"
    other = client_certificate("x")
    assert refused_for(behind, by_certificate(behind, named, other))[0] == "certificate_untrusted"
    assert refused_for(behind, by_certificate(behind, self_signed, other))[0] == "certificate_unknown"


def test_2_a_certificate_is_the_only_authentication(behind: RunningServer, authority: Certified) -> None:
    client_id, good = register(behind, TLS, **DN), client_certificate(NAMED, authority)
    secret = {"client_secret": "x" * 30}
    assert refused_for(behind, by_certificate(behind, client_id, good, **secret))[0] == "other_method_registered"
    basic = {"Authorization": NewClient(client_id, "x" * 30).basic}
    assert refused_for(behind, by_certificate(behind, client_id, good, headers=basic))[0] == "other_method_registered"
    body = {"grant_type": "client_credentials"}
    assert refused_for(behind, behind.post_token(body, headers=rfc9440(good)))[0] == "no_authentication"
    named = {**body, "client_id": client_id}
    assert refused_for(behind, behind.post_token(named))[0] == "no_authentication"


def test_2_other_endpoints_take_certificates_too(behind: RunningServer, authority: Certified) -> None:
    client_id, good = register(behind, TLS, **DN), client_certificate(NAMED, authority)
    token = by_certificate(behind, client_id, good).json()["access_token"]
    form, headers = {"client_id": client_id, "token": token}, rfc9440(good)
    described = requests.post(f"{behind.url}/oauth/introspect", form, headers=headers, timeout=10).json()
    assert (described["active"], described["cnf"]) == (True, {"x5t#S256": good.thumbprint})
    assert requests.post(f"{behind.url}/oauth/revoke", form, headers=headers, timeout=10).status_code == 200
    assert requests.post(f"{behind.url}/oauth/introspect", form, headers=headers, timeout=10).json() == {
        "active": False
    }


def test_2_the_metadata_name_the_methods_that_can_work(behind: RunningServer, server: RunningServer) -> None:
    def methods(one: RunningServer) -> set[str]:
        metadata = requests.get(f"{one.url}/.well-known/oauth-authorization-server", timeout=10).json()
        return set(metadata["token_endpoint_auth_methods_supported"])

    assert {TLS, SELF_SIGNED} <= methods(behind)
    assert not {TLS, SELF_SIGNED} & methods(server)


def test_7_4_revoked_certificates_and_new_authorities_are_noticed_without_a_restart(tmp_path: Path) -> None:
    authority, later = certify("One", is_authority=True), certify("Two", is_authority=True)
    anchors, crl = tmp_path / "ca.pem", tmp_path / "ca.crl"
    anchors.write_text(authority.pem)
    crl.write_text(revocations(authority))
    settings = {
        "TOKENHOUSE_TRUSTED_PROXIES": "127.0.0.1",
        "TOKENHOUSE_MTLS_TRUST_ANCHORS": str(anchors),
        "TOKENHOUSE_MTLS_CRLS": str(crl),
    }
    folder = tmp_path / "server"
    folder.mkdir()
    with running_server(folder, "--workers", "2", **settings) as server:
        client_id, good = register(server, TLS, **DN), client_certificate(NAMED, authority)
        of_later = client_certificate(NAMED, later)

        def seen(certificate: Certified) -> set[str | None]:
            return {
                refused_for(server, answer)[1] if answer.status_code == 401 else None
                for answer in (by_certificate(server, client_id, certificate) for _ in range(8))
            }

        assert seen(good) == {None}
        crl.write_text(revocations(authority, good))
        assert seen(good) == {"it is revoked"}
        crl.write_text("broken")
        assert seen(good) == {"it is revoked"}
        assert "must hold revocation lists in PEM or DER; the last readable content stays in use" in (
            server.stderr_path.read_text()
        )
        crl.write_text(revocations(authority) + revocations(later))
        assert seen(good) == {None}
        assert seen(of_later) != {None}
        anchors.write_text(authority.pem + later.pem)
        assert seen(of_later) == {None}
        anchors.unlink()
        assert seen(of_later) == {None}


@pytest.mark.parametrize("content", [None, "broken"])
def test_7_4_a_start_without_the_authorities_is_refused(tmp_path: Path, content: str | None) -> None:
    anchors = tmp_path / "ca.pem"
    if content is not None:
        anchors.write_text(content)
    settings = {"TOKENHOUSE_MTLS_TRUST_ANCHORS": str(anchors), "TOKENHOUSE_TRUSTED_PROXIES": "127.0.0.1"}
    server = RunningServer(tmp_path, **settings)
    server.prepare()
    with pytest.raises(AssertionError, match=r"TOKENHOUSE_MTLS_TRUST_ANCHORS: .*ca\.pem (cannot be read|must hold)"):
        server.start()
