"""``flask clients`` for clients that authenticate by mutual TLS: names, and certificates that come and go."""

from datetime import UTC, datetime, timedelta

import pytest
from functional.commands import data, refusal
from support.certificates import Certified, client_certificate
from unit.harness import Harness

SELF_SIGNED = ("--auth-method", "self_signed_tls_client_auth")
TLS = ("--auth-method", "tls_client_auth")
NEEDS_NAME = (
    "tls_client_auth needs one name of its certificate: --tls-subject-dn, --tls-san-dns, --tls-san-uri, --tls-san-ip "
    "or --tls-san-email; and nothing else"
)
NEEDS_CERTIFICATE = (
    "self_signed_tls_client_auth needs certificates from one place: --tls-cert-file FILE, or a JWKS whose keys "
    "have x5c: --jwks-file FILE or --jwks-uri URL"
)


def create(harness: Harness, *words: str, stdin: str = "") -> None:
    done = harness.run("clients", "create", "A", "--client-id", "a", *words, stdin=stdin)
    assert done.exit_code == 0, done.stderr


def certificates(harness: Harness) -> list[str]:
    return [one["fingerprint"] for one in data(harness.run("clients", "certificates", "a", "--json"))]


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--tls-subject-dn", "CN=billing,O=Example"),
        ("--tls-san-dns", "billing.example.com"),
        ("--tls-san-uri", "spiffe://example.com/billing"),
        ("--tls-san-ip", "192.0.2.1"),
        ("--tls-san-email", "ops@example.com"),
    ],
)
def test_a_client_registers_a_name(harness: Harness, option: str, value: str) -> None:
    made = data(harness.run("clients", "create", "A", "--client-id", "a", *TLS, option, value, "--json"))
    assert (made["token_endpoint_auth_method"], "client_secret" in made) == ("tls_client_auth", False)
    shown = data(harness.run("clients", "show", "a", "--json"))
    assert shown[f"tls_client_auth_{option.removeprefix('--tls-').replace('-', '_')}"] == value


def test_a_client_has_one_name_which_another_replaces(harness: Harness) -> None:
    create(harness, *TLS, "--tls-san-dns", "a.example")
    changed = data(harness.run("clients", "update", "a", "--tls-subject-dn", "CN=a", "--json"))
    assert changed["tls_client_auth_subject_dn"] == "CN=a"
    assert "tls_client_auth_san_dns" not in changed


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (TLS, NEEDS_NAME),
        ((*TLS, "--tls-san-dns", "a.example", "--tls-san-ip", "192.0.2.1"), NEEDS_NAME),
        ((*TLS, "--tls-san-dns", "*.a.example"), "--tls-san-dns '*.a.example' must be a host name without wildcard"),
        ((*TLS, "--tls-san-ip", "a.example"), "--tls-san-ip 'a.example' must be an IP address"),
        (
            (*TLS, "--tls-subject-dn", "billing"),
            "--tls-subject-dn 'billing' must be a distinguished name as in RFC 4514, such as CN=billing,O=Example",
        ),
        (SELF_SIGNED, NEEDS_CERTIFICATE),
        ((*SELF_SIGNED, "--tls-san-dns", "a.example"), NEEDS_CERTIFICATE),
        ((*SELF_SIGNED, "--tls-cert-file", "/nowhere.pem"), "the certificate file /nowhere.pem cannot be read"),
    ],
)
def test_invalid_options_are_refused_and_no_client_is_created(
    harness: Harness, words: tuple[str, ...], told: str
) -> None:
    assert refusal(harness.run("clients", "create", "A", "--client-id", "a", *words)).startswith(told)
    assert refusal(harness.run("clients", "show", "a")).startswith("there is no client")


def test_no_other_method_takes_them(harness: Harness) -> None:
    for words in (("--tls-san-dns", "a.example"), ("--tls-cert-file", "-")):
        done = harness.run("clients", "create", "A", *words, stdin=client_certificate("x").pem)
        assert "--auth-method" in refusal(done)


def test_a_file_must_hold_certificates_that_last_and_no_key(harness: Harness) -> None:
    words = ("clients", "create", "A", *SELF_SIGNED, "--tls-cert-file", "-")
    good = client_certificate("x")
    assert refusal(harness.run(*words, stdin="x")) == "- must hold certificates in PEM"
    told = refusal(harness.run(*words, stdin=good.pem + good.key_pem))
    assert told == "- holds a private key: register the certificate alone"
    old = client_certificate(
        "x", not_before=datetime(2025, 1, 1, tzinfo=UTC), not_after=datetime(2026, 1, 31, tzinfo=UTC)
    )
    assert refusal(harness.run(*words, stdin=old.pem)) == "-: a certificate has expired"


def test_certificates_come_and_go_with_an_overlap(harness: Harness) -> None:
    old, new = client_certificate("old"), client_certificate("new")
    create(harness, *SELF_SIGNED, "--tls-cert-file", "-", stdin=old.pem)
    assert certificates(harness) == [old.fingerprint]
    added = harness.run("clients", "certificates-add", "a", "-", stdin=new.pem)
    assert added.stderr == (
        f"a may authenticate with {new.fingerprint} too. `flask clients certificates-remove` ends an old one.\n"
    )
    assert certificates(harness) == [old.fingerprint, new.fingerprint]
    assert data(harness.run("clients", "show", "a", "--json"))["certificates"] == certificates(harness)
    again = harness.run("clients", "certificates-add", "a", "-", stdin=new.pem)
    assert refusal(again) == f"a has {new.fingerprint} already"
    removed = harness.run("clients", "certificates-remove", "a", as_openssl(old))
    assert removed.stderr == f"a may not authenticate with {old.fingerprint} any more.\n"
    assert certificates(harness) == [new.fingerprint]
    last = harness.run("clients", "certificates-remove", "a", new.fingerprint)
    assert refusal(last) == (
        f"'{new.fingerprint}' is the last certificate: `flask clients disable a` shuts the client out"
    )
    assert refusal(harness.run("clients", "certificates-remove", "a", "00")) == (
        "a has no certificate '00': `flask clients certificates a` shows all"
    )


def as_openssl(certified: Certified) -> str:
    text = certified.fingerprint.upper()
    return ":".join(text[place : place + 2] for place in range(0, len(text), 2))


def test_a_table_shows_what_each_is_and_until_when(harness: Harness) -> None:
    day = timedelta(days=1)
    one = client_certificate("CN, with a comma", not_before=harness.clock() - day, not_after=harness.clock() + day)
    later = client_certificate("later", not_before=harness.clock() + day, not_after=harness.clock() + 9 * day)
    create(harness, *SELF_SIGNED, "--tls-cert-file", "-", stdin=one.pem + later.pem)
    assert harness.run("clients", "certificates", "a").stdout == (
        "fingerprint\tsubject\tnot_before\tnot_after\tstate\n"
        f"{one.fingerprint}\tCN=CN\\, with a comma\t2026-01-30T12:00:00Z\t2026-02-01T12:00:00Z\tvalid\n"
        f"{later.fingerprint}\tCN=later\t2026-02-01T12:00:00Z\t2026-02-09T12:00:00Z\tnot yet valid\n"
    )
    harness.clock.advance(days=2)
    shown = data(harness.run("clients", "certificates", "a", "--json"))
    assert [(row["x5t#S256"], row["state"]) for row in shown] == [
        (one.thumbprint, "expired"),
        (later.thumbprint, "valid"),
    ]


def test_clients_whose_certificates_expire_are_found(harness: Harness) -> None:
    def expiring(span: str) -> list[str]:
        return [one["client_id"] for one in data(harness.run("clients", "list", "--expiring-in", span, "--json"))]

    harness.register("with-a-secret")
    soon, later = (
        client_certificate("x", not_before=harness.clock(), not_after=harness.clock() + timedelta(days=days))
        for days in (10, 100)
    )
    create(harness, *SELF_SIGNED, "--tls-cert-file", "-", stdin=soon.pem + later.pem)
    assert (expiring("9d"), expiring("10d")) == ([], ["a"])
    assert harness.services.clients.repository.count_expiring_certificates() == 1
    # An expired one that is still registered should be removed.
    harness.clock.advance(days=50)
    assert expiring("1d") == ["a"]
    harness.run("clients", "certificates-remove", "a", soon.fingerprint)
    assert (expiring("49d"), expiring("50d")) == ([], ["a"])
    assert harness.services.clients.repository.count_expiring_certificates() == 0
    harness.run("clients", "update", "a", "--auth-method", "client_secret")
    assert expiring("365d") == []


def test_a_client_without_certificates_has_none_to_show(harness: Harness) -> None:
    harness.register("a")
    told = "has no registered certificates: only self_signed_tls_client_auth with --tls-cert-file has some"
    assert refusal(harness.run("clients", "certificates", "a")) == f"a {told}"
    added = harness.run("clients", "certificates-add", "a", "-", stdin=client_certificate("x").pem)
    assert refusal(added) == f"the client {told}"


def test_a_client_may_have_ten_certificates(harness: Harness) -> None:
    pems = "".join(client_certificate(f"{number}").pem for number in range(11))
    done = harness.run("clients", "create", "A", *SELF_SIGNED, "--tls-cert-file", "-", stdin=pems)
    assert refusal(done) == "a client has 1 to 10 certificates"


NOT_SET = "gets no token until TOKENHOUSE_MTLS_TRUST_ANCHORS and TOKENHOUSE_TRUSTED_PROXIES are set: docs/settings.md"


def test_a_new_client_gets_a_line_to_try(harness: Harness) -> None:
    done = harness.run("clients", "create", "A", "--client-id", "a", *TLS, "--tls-san-dns", "a.example")
    assert done.stderr == (
        "\nTry it with its certificate:\n\n"
        "  curl --cert client.pem --key client.key -d client_id=a -d grant_type=client_credentials "
        f"https://tokens.example.com/oauth/token\nWarning: a {NOT_SET}\n"
    )


def test_missing_settings_are_reported(harness: Harness) -> None:
    harness.register("a")
    changed = harness.run("clients", "update", "a", *TLS, "--tls-san-dns", "a.example")
    assert changed.stderr.endswith(f"Warning: a {NOT_SET}\n")
    assert "Warning" not in harness.run("clients", "update", "a", "--name", "A").stderr
    bound = harness.run("clients", "create", "B", "--client-id", "b", "--bind-certificate", "--json")
    assert bound.stderr == ("Warning: b gets no token until TOKENHOUSE_TRUSTED_PROXIES is set: docs/settings.md\n")
