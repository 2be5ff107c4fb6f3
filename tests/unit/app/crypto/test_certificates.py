"""Certificates of clients: what of a chain must be right, revocation lists, and how names are compared."""

import base64
import contextlib
import datetime as dt
from collections.abc import Sequence
from functools import cache
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from cryptography.x509.verification import Store
from hypothesis import given
from hypothesis import strategies as st
from support.certificates import DAY, Certified, address, certify, client_certificate, revocations, subject

from app.crypto.certificates import (
    ALTERNATIVES,
    check_alternative,
    check_subject_dn,
    find_date_fault,
    find_revocation_fault,
    has_alternative,
    has_subject,
    thumbprint_of_x5c,
    verify_chain,
)

NOW = dt.datetime.now(dt.UTC)


@cache
def root() -> Certified:
    return certify("An authority", is_authority=True)


@cache
def intermediate() -> Certified:
    return certify("An intermediate", root(), is_authority=True)


def chain_of(
    certified: Certified, *intermediates: Certified, anchor: Certified | None = None, now: dt.datetime = NOW
) -> Sequence[x509.Certificate]:
    store = Store([(anchor or root()).certificate])
    return verify_chain(certified.certificate, [one.certificate for one in intermediates], store, now)


def fault(certified: Certified, *intermediates: Certified, **options: Any) -> str:
    with pytest.raises(ValueError, match="its chain is not valid: ") as caught:
        chain_of(certified, *intermediates, **options)
    return str(caught.value)


def key_usage(**usages: bool) -> x509.KeyUsage:
    names = (
        "digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement",
        "key_cert_sign", "crl_sign", "encipher_only", "decipher_only",
    )  # fmt: skip
    return x509.KeyUsage(**{name: usages.get(name, False) for name in names})


def test_a_chain_leads_to_an_anchor() -> None:
    direct, deep = client_certificate("a", root()), client_certificate("b", intermediate())
    assert list(chain_of(direct)) == [direct.certificate, root().certificate]
    assert list(chain_of(deep, intermediate())) == [one.certificate for one in (deep, intermediate(), root())]
    # Others may come along.
    assert len(chain_of(deep, client_certificate("x"), intermediate())) == 3


def test_extensions_that_private_authorities_omit_are_not_required() -> None:
    assert chain_of(certify("no extension at all", root()))


@pytest.mark.parametrize(
    "extension",
    [
        x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]),
        key_usage(key_encipherment=True),
        x509.BasicConstraints(ca=True, path_length=None),
    ],
)
def test_a_usage_that_is_present_must_allow_clients(extension: x509.ExtensionType) -> None:
    for is_critical in (True, False):
        fault(certify("a", root(), extensions=[(extension, is_critical)]))


@pytest.mark.parametrize("usage", [ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE])
def test_both_usages_that_clients_have_are_good(usage: x509.ObjectIdentifier) -> None:
    usages = [ExtendedKeyUsageOID.SERVER_AUTH, usage]
    assert chain_of(certify("a", root(), usages=usages, extensions=[(key_usage(digital_signature=True), True)]))


def test_an_unknown_critical_extension_is_refused() -> None:
    unknown = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\x05\x00")
    assert chain_of(certify("a", root(), extensions=[(unknown, False)]))
    fault(certify("a", root(), extensions=[(unknown, True)]))


def test_a_certificate_of_an_unknown_authority_is_refused_and_not_quoted() -> None:
    told = [
        fault(client_certificate("Mallory")),
        fault(client_certificate("Mallory", certify("Mallory's authority", is_authority=True))),
        # An authority of the same name with another key.
        fault(client_certificate("Mallory", certify("An authority", is_authority=True))),
        fault(client_certificate("Mallory", root(), not_after=NOW - DAY / 2)),
        fault(certify("Mallory", root(), usages=[ExtendedKeyUsageOID.SERVER_AUTH])),
    ]
    assert not [one for one in told if "Mallory" in one]


def test_only_an_authority_may_certify() -> None:
    client = client_certificate("a client", root())
    fault(client_certificate("by a client", client), client)
    not_for_certificates = certify(
        "b", root(), is_authority=True, extensions=[(key_usage(digital_signature=True), True)]
    )
    fault(client_certificate("c", not_for_certificates), not_for_certificates)
    constrained = certify("d", root(), extensions=[(x509.BasicConstraints(ca=True, path_length=0), True)])
    below = certify("e", constrained, is_authority=True)
    fault(client_certificate("f", below), constrained, below)


def test_dates_count_along_the_whole_chain() -> None:
    client = client_certificate("a", root(), not_before=NOW - DAY, not_after=NOW + DAY)
    assert chain_of(client)
    fault(client, now=NOW + 2 * DAY)
    fault(client, now=NOW - 2 * DAY)
    old = certify("old", root(), is_authority=True, not_after=NOW - DAY / 2)
    fault(client_certificate("b", old), old)
    assert find_date_fault(client.certificate, NOW) is None
    assert find_date_fault(client.certificate, NOW + 2 * DAY) == "it has expired"
    assert find_date_fault(client.certificate, NOW - 2 * DAY) == "it is not valid yet"


def test_name_constraints_count() -> None:
    limits = x509.NameConstraints([x509.DNSName("a.example")], None)
    limited = certify("limited", root(), is_authority=True, extensions=[(limits, True)])
    assert chain_of(client_certificate("b", limited, alternatives=[x509.DNSName("x.a.example")]), limited)
    fault(client_certificate("b", limited, alternatives=[x509.DNSName("x.b.example")]), limited)
    # What the library cannot check it does not accept.
    of_names = x509.NameConstraints([x509.DirectoryName(subject((NameOID.COMMON_NAME, "c")))], None)
    other = certify("other", root(), is_authority=True, extensions=[(of_names, True)])
    fault(client_certificate("b", other), other)


def lists(*pems: str) -> list[x509.CertificateRevocationList]:
    return [x509.load_pem_x509_crl(pem.encode()) for pem in pems]


def test_intermediates_that_lead_in_circles_cost_little() -> None:
    """The library counts the signatures that it checks: without that, ten such certificates would take it hours."""
    loop = certify("loop", is_authority=True)
    name, now = loop.certificate.subject, dt.datetime.now(dt.UTC)
    circle = [
        x509.CertificateBuilder(name, name, loop.key.public_key(), number, now - DAY, now + DAY)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(loop.key, hashes.SHA256())
        for number in range(1, 11)
    ]
    told = fault(client_certificate("a", loop), *(Certified(one, loop.key) for one in circle))
    assert told.endswith("Exceeded maximum signature check limit")


def test_a_revoked_certificate_is_refused() -> None:
    good, bad = client_certificate("a", root()), client_certificate("b", root())
    known = lists(revocations(root(), bad))
    assert find_revocation_fault(chain_of(good), known, NOW) is None
    assert find_revocation_fault(chain_of(bad), known, NOW) == "it is revoked"


def test_each_issuer_needs_a_list_that_has_not_expired_and_is_its_own() -> None:
    deep = chain_of(client_certificate("a", intermediate()), intermediate())
    of_root, of_intermediate = revocations(root()), revocations(intermediate())
    missing = "the revocation list of its issuer is missing"
    assert find_revocation_fault(deep, lists(of_root, of_intermediate), NOW) is None
    assert find_revocation_fault(deep, lists(of_root), NOW) == missing
    assert find_revocation_fault(deep, lists(of_intermediate), NOW) == missing
    assert find_revocation_fault(deep, [], NOW) == missing
    forged = certify("An intermediate", is_authority=True)
    assert find_revocation_fault(deep, lists(of_root, revocations(forged)), NOW) == missing
    old = revocations(intermediate(), next_update=NOW - DAY)
    assert find_revocation_fault(deep, lists(of_root, old), NOW) == "the revocation list of its issuer has expired"
    assert find_revocation_fault(deep, lists(of_root, old, of_intermediate), NOW) is None


def test_a_revoked_authority_invalidates_its_certificates() -> None:
    deep = chain_of(client_certificate("a", intermediate()), intermediate())
    known = lists(revocations(root(), intermediate()), revocations(intermediate()))
    assert find_revocation_fault(deep, known, NOW) == "an authority in its chain is revoked"


def test_an_expired_list_still_revokes() -> None:
    bad = client_certificate("b", root())
    known = lists(revocations(root(), bad, next_update=NOW - DAY))
    assert find_revocation_fault(chain_of(bad), known, NOW) == "it is revoked"


BILLING = subject(
    (NameOID.COUNTRY_NAME, "DE"), (NameOID.ORGANIZATION_NAME, "Example, Inc."), (NameOID.COMMON_NAME, "billing")
)


@pytest.mark.parametrize(
    "text",
    [
        "CN=billing,O=Example\\, Inc.,C=DE",
        "cn=billing,o=Example\\, Inc.,c=DE",
        "CN=BILLING,O=example\\,  inc.,C=de",
        "2.5.4.3=billing,2.5.4.10=Example\\2C Inc.,2.5.4.6=DE",
    ],
)
def test_names_are_compared_and_not_their_text(text: str) -> None:
    assert check_subject_dn(text) == text
    assert has_subject(certify(BILLING).certificate, text)


@pytest.mark.parametrize(
    "text",
    [
        "CN=billing",
        "CN=billing,O=Example\\, Inc.",
        "C=DE,O=Example\\, Inc.,CN=billing",
        "CN=billing,CN=billing,O=Example\\, Inc.,C=DE",
        "CN=billing+O=Example\\, Inc.,C=DE",
        "CN=billing2,O=Example\\, Inc.,C=DE",
        "OU=billing,O=Example\\, Inc.,C=DE",
    ],
)
def test_another_name_is_another_client(text: str) -> None:
    assert not has_subject(certify(BILLING).certificate, check_subject_dn(text))


def test_attributes_that_people_write_are_known() -> None:
    name = subject((NameOID.SERIAL_NUMBER, "7"), (NameOID.EMAIL_ADDRESS, "a@b.example"), (NameOID.USER_ID, "u"))
    for text in ("UID=u,emailAddress=a@b.example,serialNumber=7", "uid=u,E=a@b.example,SERIALNUMBER=7"):
        assert has_subject(certify(name).certificate, check_subject_dn(text))


@pytest.mark.parametrize("text", ["", "billing", "CN", "XX=1", "CN=a,", "CN=a,,O=b", "=a"])
def test_a_malformed_distinguished_name_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="must be a distinguished name as in RFC 4514, such as"):
        check_subject_dn(text)


@given(
    st.lists(st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=30), min_size=1, max_size=3)
)
def test_every_name_is_its_own_text(values: list[str]) -> None:
    name = subject(*((NameOID.ORGANIZATIONAL_UNIT_NAME, value) for value in values))
    certificate = _Named(name)
    assert has_subject(certificate, name.rfc4514_string())  # type: ignore[arg-type]
    assert not has_subject(certificate, name.rfc4514_string() + "x")  # type: ignore[arg-type]


@cache
def whole() -> bytes:
    """A certificate with everything that is compared."""
    return client_certificate("a", root(), alternatives=ALTERNATIVE).der


def test_a_malformed_subject_matches_no_name() -> None:
    raw = whole().replace(b"\x0c\x01a", b"\x0c\x01\xff")
    assert raw != whole()
    certificate = x509.load_der_x509_certificate(raw)
    with pytest.raises(ValueError, match="asn1"):
        assert certificate.subject
    assert not has_subject(certificate, "CN=a")


@pytest.mark.filterwarnings("ignore")
@given(st.lists(st.tuples(st.integers(0), st.integers(0, 255)), min_size=1, max_size=4))
def test_no_malformed_certificate_raises_another_error(changes: list[tuple[int, int]]) -> None:
    """Parts of it are parsed only when they are asked for, and may be anything then."""
    raw = bytearray(whole())
    for place, octet in changes:
        raw[place % len(raw)] = octet
    try:
        certificate = x509.load_der_x509_certificate(bytes(raw))
    except (ValueError, x509.InvalidVersion):
        return
    assert has_subject(certificate, "CN=a") in {True, False}
    for kind in ALTERNATIVES:
        assert has_alternative(certificate, kind, "192.0.2.1") in {True, False}
    with contextlib.suppress(ValueError):
        assert verify_chain(certificate, [certificate], Store([root().certificate]), NOW)


class _Named:
    """Something with a subject: signing a certificate for each example would take long."""

    def __init__(self, name: x509.Name) -> None:
        self.subject = name


ALTERNATIVE = [
    x509.DNSName("Billing.Example.com"),
    x509.UniformResourceIdentifier("spiffe://example.com/billing"),
    address("192.0.2.1"),
    address("2001:db8::1"),
    x509.RFC822Name("Ops@Example.com"),
]


@pytest.mark.parametrize(
    ("kind", "good", "other"),
    [
        ("dns", "billing.example.com", "example.com"),
        ("dns", "BILLING.EXAMPLE.COM", "a.billing.example.com"),
        ("uri", "spiffe://example.com/billing", "spiffe://example.com/Billing"),
        ("ip", "192.0.2.1", "192.0.2.10"),
        ("ip", "2001:0DB8:0::1", "2001:db8::2"),
        ("email", "Ops@example.COM", "ops@example.com"),
    ],
)
def test_an_alternative_name_is_compared_as_its_kind_is(kind: str, good: str, other: str) -> None:
    certificate = client_certificate("a", alternatives=ALTERNATIVE).certificate
    assert has_alternative(certificate, kind, check_alternative(kind, good))
    assert not has_alternative(certificate, kind, check_alternative(kind, other))
    assert not has_alternative(client_certificate("a").certificate, kind, good)


def test_a_common_name_is_no_alternative_name() -> None:
    assert not has_alternative(client_certificate("billing.example.com").certificate, "dns", "billing.example.com")


def test_a_wildcard_in_a_certificate_stands_for_itself() -> None:
    certificate = client_certificate("a", alternatives=[x509.DNSName("*.example.com")]).certificate
    assert not has_alternative(certificate, "dns", "billing.example.com")


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [
        ("dns", "*.example.com"), ("dns", ""), ("dns", "a b"), ("dns", "a..b"), ("dns", "x" * 64),
        ("dns", "bücher.example"),
        ("uri", "example.com/x"),
        ("uri", "urn:a#b"), ("uri", ""), ("uri", "urn:a b"), ("ip", "192.0.2.0/24"), ("ip", "example.com"),
        ("email", "example.com"), ("email", "a@b@c"), ("email", ""),
    ],
)  # fmt: skip
def test_a_wrong_alternative_name_is_not_registered(kind: str, wrong: str) -> None:
    with pytest.raises(ValueError, match=f"must be {ALTERNATIVES[kind][3]}"):
        check_alternative(kind, wrong)


def test_x5c_counts_if_it_is_of_the_key() -> None:
    own = client_certificate("a")
    public = own.key.public_key()
    encoded = base64.b64encode(own.der).decode()
    assert thumbprint_of_x5c([encoded, "more"], public) == own.thumbprint
    assert thumbprint_of_x5c([encoded], client_certificate("b").key.public_key()) is None
    for wrong in (None, 7, "x", [], [7], ["x"], [base64.b64encode(b"x").decode()], {"0": encoded}):
        assert thumbprint_of_x5c(wrong, public) is None
