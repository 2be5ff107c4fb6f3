"""Mutual TLS through the proxies of ``deploy/``, with real certificates and two servers."""

import re
import shlex
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import requests
from cryptography.x509 import DNSName
from support.certificates import Certified, certify, client_certificate, nginx, rfc9440, xfcc
from support.fronts import FRONTS, Front, is_installed, open_front
from support.server import wait_until

from app.clients.fields import ClientFields

SETTINGS = {
    "nginx": {"TOKENHOUSE_MTLS_FORMAT": "nginx"},
    "haproxy": {},
    "envoy": {"TOKENHOUSE_MTLS_FORMAT": "xfcc", "TOKENHOUSE_MTLS_HEADER": "X-Forwarded-Client-Cert"},
}
TLS, SELF_SIGNED = "tls_client_auth", "self_signed_tls_client_auth"


def with_mutual_tls(text: str) -> str:
    """A configuration as its comments say it must be."""
    kept = re.sub(r"(?m)^ *bind :443 ssl .*alpn h2,http/1\.1\n", "", text)
    uncommented = re.sub(r"(?m)^( *)#(?=[a-z])", r"\1", kept)
    assert uncommented != kept
    return uncommented.replace('Client-Cert "";', "Client-Cert $ssl_client_escaped_cert;")


class Mutual(NamedTuple):
    """A front that asks for certificates, and the authority that its servers trust."""

    front: Front
    authority: Certified
    folder: Path

    def register(self, method: str, **auth_fields: Any) -> str:
        fields = ClientFields("By certificate", token_endpoint_auth_method=method, auth_fields=auth_fields)
        server = self.front.servers[0]
        with server.context():
            return server.services.clients.repository.register(fields, with_secret=False)[0].client_id

    def files(self, of: Certified, *chain: Certified) -> tuple[str, str]:
        """Certificate and key as clients want them."""
        certificate, key = self.folder / f"{of.fingerprint}.pem", self.folder / f"{of.fingerprint}.key"
        certificate.write_text("".join(one.pem for one in (of, *chain)))
        key.write_text(of.key_pem)
        return str(certificate), str(key)

    def post(self, client_id: str, *chain: Certified, headers: dict[str, str] | None = None) -> requests.Response:
        return requests.post(
            f"{self.front.url}/oauth/token",
            {"grant_type": "client_credentials", "client_id": client_id},
            headers=headers,
            cert=self.files(*chain) if chain else None,
            verify=str(self.front.authority),
            timeout=30,
        )

    def event_of(self, answer: requests.Response) -> dict[str, Any]:
        request_id = answer.headers["X-Request-ID"]

        def found() -> list[dict[str, Any]]:
            events = (event for server in self.front.servers for event in server.events())
            return [event for event in events if event.get("request_id") == request_id]

        wait_until(lambda: bool(found()))
        return found()[0]


@pytest.fixture(scope="module", params=FRONTS)
def mutual(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mutual]:
    if not is_installed(request.param):
        pytest.skip(f"{request.param} is not installed")
    folder = tmp_path_factory.mktemp(f"mtls-{request.param}")
    authority = certify("An authority", is_authority=True)
    (folder / "ca.pem").write_text(authority.pem)
    settings = {"TOKENHOUSE_MTLS_TRUST_ANCHORS": str(folder / "ca.pem"), **SETTINGS[request.param]}
    with open_front(request.param, folder, with_mutual_tls, **settings) as front:
        yield Mutual(front, authority, folder)


def assert_bound(mutual: Mutual, answer: requests.Response, certificate: Certified) -> None:
    assert answer.status_code == 200, answer.text
    claims = mutual.front.servers[0].verify(answer.json()["access_token"])
    assert claims["cnf"] == {"x5t#S256": certificate.thumbprint}


def test_a_certificate_of_an_authority_comes_through(mutual: Mutual) -> None:
    client_id = mutual.register(TLS, tls_client_auth_san_dns="billing.example.com")
    good = client_certificate("billing", mutual.authority, alternatives=[DNSName("billing.example.com")])
    for _ in range(6):
        assert_bound(mutual, mutual.post(client_id, good), good)
    # Both servers have served some.
    assert all("TokenIssued" in {event["event"] for event in server.events()} for server in mutual.front.servers)
    other = client_certificate("billing", mutual.authority, alternatives=[DNSName("orders.example.com")])
    refused = mutual.post(client_id, other)
    assert (refused.status_code, mutual.event_of(refused)["reason"]) == (401, "certificate_name_mismatch")


def test_an_intermediate_comes_along_where_the_proxy_hands_it_on(mutual: Mutual) -> None:
    client_id = mutual.register(TLS, tls_client_auth_subject_dn="CN=deep")
    between = certify("Between", mutual.authority, is_authority=True)
    deep = client_certificate("deep", between)
    answer = mutual.post(client_id, deep, between)
    if "envoy" in str(mutual.front.process.args):
        assert_bound(mutual, answer, deep)
    else:
        # It must be among the trust anchors then.
        assert (answer.status_code, mutual.event_of(answer)["reason"]) == (401, "certificate_untrusted")


def test_a_self_signed_certificate_comes_through_and_is_not_taken_for_a_certified_one(mutual: Mutual) -> None:
    own = client_certificate("billing", alternatives=[DNSName("billing.example.com")])
    registered = {"x5t#S256": own.thumbprint, "not_after": 4102444800}
    assert_bound(mutual, mutual.post(mutual.register(SELF_SIGNED, certificates=[registered]), own), own)
    refused = mutual.post(mutual.register(TLS, tls_client_auth_san_dns="billing.example.com"), own)
    assert (refused.status_code, mutual.event_of(refused)["reason"]) == (401, "certificate_untrusted")


def forged(certificate: Certified, write: Callable[[Certified], dict[str, str]]) -> dict[str, str]:
    """Headers that a caller without the certificate can send."""
    value = write(certificate)["Client-Cert"]
    return dict.fromkeys(("Client-Cert", "X-Forwarded-Client-Cert", "Client-Cert-Chain"), value)


@pytest.mark.parametrize("write", [rfc9440, nginx, xfcc])
def test_a_header_of_the_caller_does_not_arrive(mutual: Mutual, write: Callable[[Certified], dict[str, str]]) -> None:
    """Certificates are public, so any caller could write the header."""
    good = client_certificate("victim", mutual.authority)
    client_id = mutual.register(TLS, tls_client_auth_subject_dn="CN=victim")
    for chain in ((), (client_certificate("thief"),)):
        answer = mutual.post(client_id, *chain, headers=forged(good, write))
        assert answer.status_code == 401, answer.text
        assert mutual.event_of(answer)["reason"] == ("certificate_untrusted" if chain else "no_authentication")


def test_the_line_that_a_new_client_is_shown_works(mutual: Mutual) -> None:
    certificate, server = client_certificate("curl", mutual.authority), mutual.front.servers[0]
    created = server.flask("clients", "create", "Curl", "--auth-method", TLS, "--tls-subject-dn", "CN=curl")
    (line,) = [line for line in created.stderr.splitlines() if line.startswith("  curl ")]
    pem, key = mutual.files(certificate)
    path = "/oauth/token"
    places = {"client.pem": pem, "client.key": key, f"{server.settings.issuer}{path}": f"{mutual.front.url}{path}"}
    command = [places.get(word, word) for word in shlex.split(line)]
    assert set(places.values()) < set(command)
    trusting = [*command, "--silent", "--cacert", str(mutual.front.authority)]
    done = subprocess.run(trusting, capture_output=True, check=True, timeout=30)
    assert b'"access_token"' in done.stdout


@pytest.mark.parametrize("kind", FRONTS)
def test_without_mutual_tls_no_header_of_a_caller_arrives(tmp_path: Path, kind: str) -> None:
    if not is_installed(kind):
        pytest.skip(f"{kind} is not installed")
    with open_front(kind, tmp_path, **SETTINGS[kind]) as front:
        client = front.servers[0].create_client(sender_constraints=("mtls",))
        for write in (rfc9440, nginx, xfcc):
            answer = front.post(client, **forged(client_certificate("x"), write))
            assert answer.json()["error_description"] == "The request must come with a client certificate over TLS."
