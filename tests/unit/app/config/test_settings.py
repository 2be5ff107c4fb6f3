"""Settings: what each value may be and in which words another is refused."""

import os
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr
from unit.checkout import ISSUER, PEPPER, load, refusal

from app.audiences import is_absolute_uri
from app.config.settings import SETTING_NAMES, Settings
from app.config.values import (
    PROJECT_FOLDER,
    IdentifiedKey,
    default_server_name,
    format_duration,
    format_rate,
    is_loopback,
    parse_database_url,
    parse_duration,
    parse_server_name,
)
from app.types import Rate

ISSUER_RULE = (
    "TOKENHOUSE_ISSUER must be an https URL (http on loopback only) in lower case, with no default port, "
    "trailing slash, query, fragment or user name"
)
DURATION_RULE = "must be a duration such as 90s, 15m, 24h or 7d"
DATABASE_RULE = "TOKENHOUSE_DATABASE_URL must be sqlite:///PATH or postgresql+psycopg://USER:PASSWORD@HOST/NAME"
PEPPERS_RULE = "TOKENHOUSE_SECRET_PEPPERS must be comma-separated id:value pairs, each value of 32 characters or more"
AUDIENCE_RULE = (
    "TOKENHOUSE_DEFAULT_AUDIENCE must be an absolute URI without a fragment, or a name of letters, digits and ._~/@+-"
)


def test_names_and_defaults_are_those_of_the_contract(checkout: Path) -> None:
    loaded = load(checkout)
    assert {
        name: getattr(loaded, name) for name in Settings.model_fields if name not in {"database_url", "secret_peppers"}
    } == {
        "config": "production",
        "audit_log_required": False,
        "assertion_audience": "any",
        "assertion_lifetime": 3600,
        "jwks_uri_networks": (),
        "publish_scopes": True,
        "audience_parameter": True,
        "token_max_characters": 8192,
        "outage_grace": 15 * 60,
        "snapshot": None,
        "server_name": default_server_name(),
        "ratelimit_enabled": True,
        "ratelimit_failures": (20, 60),
        "token_quota": None,
        "token_quota_mode": "report",
        "ratelimit_tokens": (6000, 60),
        "ratelimit_revocations": (600, 60),
        "dpop_nonce_lifetime": 0,
        "mtls_header": "Client-Cert",
        "mtls_format": "rfc9440",
        "mtls_trust_anchors": None,
        "mtls_crls": (),
        "mtls_url": None,
        "trusted_proxies": (),
        "issuer": ISSUER,
        "redis_url": None,
        "keyring": PROJECT_FOLDER / "instance/keyring.toml",
        "keyring_passphrase": None,
        "signing_alg": "RS256",
        "key_announce": 7 * 86400,
        "key_rotation_interval": 90 * 86400,
        "keyring_propagation": None,
        "jwks_max_age": 300,
        "encryption_keys": (),
        "access_token_lifetime": 3600,
        "default_audience": ISSUER,
        "metrics_address": ("127.0.0.1", 9464),
        "traces": None,
        "log_format": "json",
        "log_level": "info",
    }
    assert loaded.database_url.get_secret_value() == f"sqlite:///{PROJECT_FOLDER}/instance/tokenhouse.db"
    assert [(pepper.id, pepper.value.get_secret_value()) for pepper in loaded.secret_peppers] == [("p1", "x" * 32)]


def test_every_setting_is_a_variable_with_the_prefix() -> None:
    assert set(SETTING_NAMES) == {
        "TOKENHOUSE_CONFIG",
        "TOKENHOUSE_AUDIT_LOG_REQUIRED",
        "TOKENHOUSE_ASSERTION_AUDIENCE",
        "TOKENHOUSE_ASSERTION_LIFETIME",
        "TOKENHOUSE_JWKS_URI_NETWORKS",
        "TOKENHOUSE_PUBLISH_SCOPES",
        "TOKENHOUSE_AUDIENCE_PARAMETER",
        "TOKENHOUSE_TOKEN_MAX_CHARACTERS",
        "TOKENHOUSE_OUTAGE_GRACE",
        "TOKENHOUSE_SNAPSHOT",
        "TOKENHOUSE_SERVER_NAME",
        "TOKENHOUSE_RATELIMIT_ENABLED",
        "TOKENHOUSE_RATELIMIT_FAILURES",
        "TOKENHOUSE_RATELIMIT_TOKENS",
        "TOKENHOUSE_TOKEN_QUOTA",
        "TOKENHOUSE_TOKEN_QUOTA_MODE",
        "TOKENHOUSE_RATELIMIT_REVOCATIONS",
        "TOKENHOUSE_DPOP_NONCE_LIFETIME",
        "TOKENHOUSE_MTLS_HEADER",
        "TOKENHOUSE_MTLS_FORMAT",
        "TOKENHOUSE_MTLS_TRUST_ANCHORS",
        "TOKENHOUSE_MTLS_CRLS",
        "TOKENHOUSE_MTLS_URL",
        "TOKENHOUSE_TRUSTED_PROXIES",
        "TOKENHOUSE_ISSUER",
        "TOKENHOUSE_DATABASE_URL",
        "TOKENHOUSE_REDIS_URL",
        "TOKENHOUSE_KEYRING",
        "TOKENHOUSE_KEYRING_PASSPHRASE",
        "TOKENHOUSE_SIGNING_ALG",
        "TOKENHOUSE_KEY_ANNOUNCE",
        "TOKENHOUSE_KEY_ROTATION_INTERVAL",
        "TOKENHOUSE_KEYRING_PROPAGATION",
        "TOKENHOUSE_ENCRYPTION_KEYS",
        "TOKENHOUSE_JWKS_MAX_AGE",
        "TOKENHOUSE_SECRET_PEPPERS",
        "TOKENHOUSE_ACCESS_TOKEN_LIFETIME",
        "TOKENHOUSE_DEFAULT_AUDIENCE",
        "TOKENHOUSE_METRICS_ADDRESS",
        "TOKENHOUSE_TRACES",
        "TOKENHOUSE_LOG_FORMAT",
        "TOKENHOUSE_LOG_LEVEL",
    }


def test_settings_are_frozen(checkout: Path) -> None:
    with pytest.raises(ValueError, match="frozen"):
        load(checkout).issuer = "https://other.example.com"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        ("90s", 90),
        ("15m", 900),
        ("24h", 86400),
        ("7d", 604800),
        ("90", 90),
        ("0", 0),
        ("007s", 7),
        ("3650d", 315_360_000),
        (0, 0),
        (90, 90),
    ],
)
def test_a_duration_reads(written: str | int, seconds: int) -> None:
    assert parse_duration(written) == seconds


@pytest.mark.parametrize(
    "junk",
    [
        *("", " ", "s", "1w", "1 h", " 1h", "1h ", "1h\n", "1H", "-1s", "+1s", "1.5h", "1h30m", "½h", "1e3", "0x10"),
        *("\N{ARABIC-INDIC DIGIT ONE}s", "9" * 13, -1, 1.5, 1.0, True, False, None, [], {}, b"1h"),
    ],
)
def test_a_duration_that_is_none_is_refused(junk: object) -> None:
    with pytest.raises(ValueError, match=f"^{DURATION_RULE}$"):
        parse_duration(junk)


@pytest.mark.parametrize("long", ["3651d", "315360001", 315_360_001, "999999999999d"])
def test_a_duration_is_at_most_ten_years(long: str | int) -> None:
    with pytest.raises(ValueError, match=r"^must be at most 3650d$"):
        parse_duration(long)


@given(st.integers(0, 315_360_000))
def test_a_duration_that_is_written_reads_as_it_was(seconds: int) -> None:
    assert parse_duration(format_duration(seconds)) == seconds
    assert parse_duration(seconds) == parse_duration(str(seconds)) == seconds


@given(st.one_of(st.text(), st.integers(), st.floats(), st.booleans(), st.binary(), st.none()))
def test_a_duration_is_whole_seconds_or_a_refusal(anything: object) -> None:
    try:
        seconds = parse_duration(anything)
    except ValueError as error:
        assert str(error) in {DURATION_RULE, "must be at most 3650d"}  # noqa: PT017 - Either is right.
    else:
        assert type(seconds) is int
        assert 0 <= seconds <= 315_360_000


@pytest.mark.parametrize(
    ("seconds", "written"), [(0, "0s"), (1, "1s"), (90, "90s"), (3600, "1h"), (86400, "1d"), (90000, "25h"), (60, "1m")]
)
def test_a_duration_is_written_in_its_largest_unit(seconds: int, written: str) -> None:
    assert format_duration(seconds) == written


@pytest.mark.parametrize(
    ("name", "shortest", "longest", "told"),
    [
        ("ACCESS_TOKEN_LIFETIME", 60, 86400, "from 1m to 1d"),
        ("JWKS_MAX_AGE", 1, 86400, "from 1s to 1d"),
        ("KEY_ANNOUNCE", 0, 365 * 86400, "from 0s to 365d"),
    ],
)
def test_a_duration_has_bounds(checkout: Path, name: str, shortest: int, longest: int, told: str) -> None:
    others = {"JWKS_MAX_AGE": "1s", "KEY_ANNOUNCE": "365d"}
    if name == "KEY_ANNOUNCE":
        shortest = 1  # Never shorter than the cache time of the JWKS, which is 1 s or more.
    for good in (shortest, longest):
        assert getattr(load(checkout, **{**others, name: str(good)}), name.lower()) == good
    for bad in ([shortest - 1] if name != "KEY_ANNOUNCE" else []) + [longest + 1]:
        assert refusal(checkout, **{**others, name: str(bad)}) == f"TOKENHOUSE_{name} must be {told}"


def test_a_duration_in_toml_may_be_an_integer(checkout: Path) -> None:
    (checkout / "config/production.toml").write_text("access_token_lifetime = 90")
    assert load(checkout).access_token_lifetime == 90


@pytest.mark.parametrize("value", ["1.5", "true", "[60]", "2026-01-31T12:00:00Z", '"1 h"'])
def test_a_duration_in_toml_is_nothing_else(checkout: Path, value: str) -> None:
    (checkout / "config/production.toml").write_text(f"access_token_lifetime = {value}")
    assert refusal(checkout) == f"TOKENHOUSE_ACCESS_TOKEN_LIFETIME {DURATION_RULE}"


def test_a_short_announcement_is_no_fault_since_the_safe_time_is_computed(checkout: Path) -> None:
    assert load(checkout, KEY_ANNOUNCE="0", JWKS_MAX_AGE="5m").key_announce == 0


def test_a_key_ring_may_be_in_the_database_where_it_can_be_encrypted(checkout: Path) -> None:
    assert load(checkout, KEYRING="database", ENCRYPTION_KEYS=f"k1:{'x' * 32}").keyring == "database"
    assert refusal(checkout, KEYRING="database").startswith(
        "TOKENHOUSE_ENCRYPTION_KEYS is required where TOKENHOUSE_KEYRING is database: "
    )


@pytest.mark.parametrize("value", ["env:", "env:1A", "env:A B", "env:A-B"])
def test_a_key_ring_in_the_environment_names_a_variable(checkout: Path, value: str) -> None:
    assert load(checkout, KEYRING="env:MY_RING1").keyring == "env:MY_RING1"
    assert refusal(checkout, KEYRING=value) == (
        "TOKENHOUSE_KEYRING must name a variable after env:, of letters, digits and underscores"
    )


@pytest.mark.parametrize("alg", ["RS256", "PS256", "ES256", "EdDSA"])
def test_an_algorithm_signs(checkout: Path, alg: str) -> None:
    assert load(checkout, SIGNING_ALG=alg).signing_alg == alg


@pytest.mark.parametrize("alg", ["HS256", "none", "rs256", "RS512", "Ed25519"])
def test_no_other_algorithm_signs(checkout: Path, alg: str) -> None:
    assert refusal(checkout, SIGNING_ALG=alg) == "TOKENHOUSE_SIGNING_ALG must be 'RS256', 'PS256', 'ES256' or 'EdDSA'"


def test_a_year_is_365_days(checkout: Path) -> None:
    assert load(checkout, KEY_ROTATION_INTERVAL="1y").key_rotation_interval == 365 * 86400


@pytest.mark.parametrize(
    "issuer",
    [
        "https://tokens.example.com",
        "https://tokens.example.com:8443",
        "https://tokens.example.com/auth",
        "https://tokens.example.com/a/b-c/d_e/f~g/h.i",
        "https://tokens.example.com/.well",
        "https://192.0.2.1",
        "https://[2001:db8::1]:8443",
        "https://t",
        "http://localhost",
        "http://localhost:8080",
        "http://tokens.localhost:8080/a",
        "http://127.0.0.1:8080",
        "http://127.9.9.9",
        "http://[::1]:8080",
    ],
)
def test_an_issuer_is_taken_to_the_letter(checkout: Path, issuer: str) -> None:
    assert load(checkout, ISSUER=issuer).issuer == issuer


@pytest.mark.parametrize(
    "issuer",
    [
        "https://tokens.example.com/",
        "https://tokens.example.com/a/",
        "https://tokens.example.com//a",
        "https://tokens.example.com/a//b",
        "https://tokens.example.com/a/../b",
        "https://tokens.example.com/./a",
        "https://tokens.example.com?",
        "https://tokens.example.com?a=b",
        "https://tokens.example.com#",
        "https://tokens.example.com#a",
        "https://tokens.example.com/a b",
        "https://tokens.example.com/%61",
        "https://tokens.example.com/a;b",
        "https://Tokens.example.com",
        "HTTPS://tokens.example.com",
        "https://user@tokens.example.com",
        "https://user:password@tokens.example.com",
        "https://@tokens.example.com",
        "https://",
        "https:///a",
        "https://:8080",
        "https:tokens.example.com",
        "//tokens.example.com",
        "tokens.example.com",
        "tokens",
        "ftp://tokens.example.com",
        "urn:tokens",
        "http://tokens.example.com",
        "http://10.0.0.1",
        "http://0.0.0.0:8080",
        "http://localhost.example.com",
        "http://notlocalhost",
        "http://[::2]",
        "https://[::1",
        "https://[tokens]",
        "https://[192.0.2.1]",
        "https://tokens.example.com:port",
        "https://tokens.example.com:65536",
        "https://tokens.example.com\n",
        " https://tokens.example.com",
        "https://tokens.example.com ",
        "https://tok\tens.example.com",
        "https://tökens.example.com",
    ],
)
def test_an_issuer_that_could_be_written_in_two_ways_or_heard_on_the_way_is_refused(
    checkout: Path, issuer: str
) -> None:
    assert refusal(checkout, ISSUER=issuer, DEFAULT_AUDIENCE="urn:api") == ISSUER_RULE


def test_a_wrong_issuer_is_one_fault_even_where_it_is_the_default_audience(checkout: Path) -> None:
    assert refusal(checkout, ISSUER="tokens.example.com") == ISSUER_RULE


@pytest.mark.parametrize(
    "issuer",
    [
        "https://tokens.example.com:",
        "https://tokens.example.com:443",
        "http://localhost:80",
        "https://tokens.example.com:08443",
        "https://tok ens.example.com",
        'https://tokens"example.com',
        "https://<tokens>.example.com",
        "https://tokens.example.com\\a",
        "https://tokens%2eexample.com",
        "https://tokens,example.com",
        "https://tokens\x00.example.com",
    ],
)
def test_an_issuers_host_and_port_are_a_host_and_a_port(checkout: Path, issuer: str) -> None:
    assert refusal(checkout, ISSUER=issuer, DEFAULT_AUDIENCE="urn:api") == ISSUER_RULE


def test_an_issuer_is_required_outside_development(checkout: Path) -> None:
    assert refusal(checkout, ISSUER="") == (
        "TOKENHOUSE_ISSUER is required outside development: the https URL under which callers reach this server"
    )


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("localhost", True),
        ("a.localhost", True),
        ("127.0.0.1", True),
        ("127.255.255.254", True),
        ("::1", True),
        ("0.0.0.0", False),  # noqa: S104
        ("", False),
        ("localhost.example.com", False),
        ("xlocalhost", False),
        ("128.0.0.1", False),
    ],
)
def test_loopback_can_only_be_this_machine(host: str, *, loopback: bool) -> None:
    assert is_loopback(host) is loopback


@pytest.mark.parametrize(
    ("given_url", "url"),
    [
        ("sqlite:////var/lib/t.db", "sqlite:////var/lib/t.db"),
        ("sqlite:///instance/t.db", f"sqlite:///{PROJECT_FOLDER}/instance/t.db"),
        ("sqlite+pysqlite:////var/t.db", "sqlite+pysqlite:////var/t.db"),
        ("postgresql+psycopg://u:p@h/n", "postgresql+psycopg://u:p@h/n"),
        ("postgresql://u:p@h:5433/n", "postgresql+psycopg://u:p@h:5433/n"),
        ("postgres://u:p%40%2F@h/n?sslmode=require", "postgresql+psycopg://u:p%40%2F@h/n?sslmode=require"),
        ("postgresql://h/n?prepare_threshold=0", "postgresql+psycopg://h/n?prepare_threshold=0"),
        ("postgresql://h/n?prepare_threshold=none", "postgresql+psycopg://h/n?prepare_threshold=none"),
    ],
)
def test_a_database_url_is_made_whole(checkout: Path, given_url: str, url: str) -> None:
    assert load(checkout, DATABASE_URL=given_url).database_url.get_secret_value() == url


@pytest.mark.parametrize(
    "url",
    [
        *("mysql://u:p@h/n", "postgresql+psycopg2://u:p@h/n", "postgresql+asyncpg://h/n", "x", "://", "/var/t.db"),
        *("postgresql://u:p@h:port/n", "oracle://h", "sqlite+aiosqlite:////t.db"),
    ],
)
def test_another_database_is_refused(checkout: Path, url: str) -> None:
    assert refusal(checkout, DATABASE_URL=url) == DATABASE_RULE


@pytest.mark.parametrize("threshold", ["-1", "five", "None"])
def test_parameters_of_the_driver_are_what_they_are(checkout: Path, threshold: str) -> None:
    url = f"postgresql://u:hidden@h/n?prepare_threshold={threshold}"
    assert refusal(checkout, DATABASE_URL=url) == (
        "TOKENHOUSE_DATABASE_URL must have a number or none as prepare_threshold"
    )


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///", "sqlite:///:memory:"])
def test_a_database_in_memory_is_refused(checkout: Path, url: str) -> None:
    assert refusal(checkout, DATABASE_URL=url) == (
        "TOKENHOUSE_DATABASE_URL must name a file: a SQLite database in memory cannot be shared by several workers"
    )


@pytest.mark.parametrize(
    ("peppers", "read"),
    [
        ("p1:" + "a" * 32, {"p1": "a" * 32}),
        ("p2:" + "b" * 40 + ",p1:" + "a" * 32, {"p2": "b" * 40, "p1": "a" * 32}),
        (" p2:" + "b" * 32 + " , p1:" + "a" * 32 + "\n", {"p2": "b" * 32, "p1": "a" * 32}),
        ("A-_9:" + ":" * 32, {"A-_9": ":" * 32}),
        ("p" * 16 + ":" + "ä" * 32, {"p" * 16: "ä" * 32}),
    ],
)
def test_peppers_are_read_in_order(checkout: Path, peppers: str, read: dict[str, str]) -> None:
    found = load(checkout, SECRET_PEPPERS=peppers).secret_peppers
    assert [(pepper.id, pepper.value.get_secret_value()) for pepper in found] == list(read.items())


@pytest.mark.parametrize(
    "peppers",
    [
        "x" * 40,
        ":" + "x" * 40,
        "p1:" + "x" * 31,
        "p1" + "x" * 40 + ":",
        "p 1:" + "x" * 40,
        "p" * 17 + ":" + "x" * 40,
        PEPPER + ",",
        "," + PEPPER,
        PEPPER + ",p2:short",
        "p1;" + "x" * 40,
        "é:" + "x" * 40,
    ],
)
def test_peppers_of_another_form_are_refused(checkout: Path, peppers: str) -> None:
    assert refusal(checkout, SECRET_PEPPERS=peppers) == PEPPERS_RULE


def test_two_peppers_of_one_id_are_refused(checkout: Path) -> None:
    peppers = f"{PEPPER},p1:{'y' * 32}"
    assert refusal(checkout, SECRET_PEPPERS=peppers) == "TOKENHOUSE_SECRET_PEPPERS must not name an id twice"


def test_peppers_in_toml_are_a_string(checkout: Path) -> None:
    (checkout / "config/production.toml").write_text(f'secret_peppers = ["{PEPPER}"]')
    assert refusal(checkout, SECRET_PEPPERS="") == PEPPERS_RULE


def test_a_pepper_with_bytes_that_are_not_utf_8_is_refused_at_the_start(checkout: Path) -> None:
    told = refusal(checkout, SECRET_PEPPERS="p1:" + os.fsdecode(b"\xff" * 32))
    assert told.startswith("TOKENHOUSE_SECRET_PEPPERS ")


def test_a_passphrase_with_bytes_that_are_not_utf_8_is_refused_at_the_start(checkout: Path) -> None:
    told = refusal(checkout, KEYRING_PASSPHRASE=os.fsdecode(b"\xff"))
    assert told.startswith("TOKENHOUSE_KEYRING_PASSPHRASE ")
    assert "\n" not in told


def test_peppers_may_be_given_as_they_are() -> None:
    peppers = (IdentifiedKey("p1", SecretStr("x" * 32)),)
    assert Settings(issuer=ISSUER, secret_peppers=peppers).secret_peppers == peppers  # type: ignore[call-arg]


def test_peppers_are_required(checkout: Path) -> None:
    told = refusal(checkout, SECRET_PEPPERS="")
    assert told.startswith("TOKENHOUSE_SECRET_PEPPERS is required: `make run` makes one for development; ")
    assert "\n" not in told


@pytest.mark.parametrize(
    "audience",
    ["https://api.example.com", "urn:example:api", "api:orders", "https://a.example/p?q=1", "a:b%20c", "orders-api"],
)
def test_an_audience_is_an_absolute_uri_or_a_name(checkout: Path, audience: str) -> None:
    assert load(checkout, DEFAULT_AUDIENCE=audience).default_audience == audience


@pytest.mark.parametrize(
    "audience", ["an api", "/api", "https://a.example#f", "a: b", "a:", "1a:b", "ä:b", "a:ä", "a:b\n", 'a:"']
)
def test_an_audience_of_another_form_is_refused(checkout: Path, audience: str) -> None:
    assert refusal(checkout, DEFAULT_AUDIENCE=audience) == AUDIENCE_RULE


@given(st.text(max_size=30))
def test_an_absolute_uri_has_a_scheme_and_only_the_characters_of_a_uri(text: str) -> None:
    if is_absolute_uri(text):
        assert re.match(r"[A-Za-z][A-Za-z0-9+.-]*:", text)
        assert text.isascii()
        assert text.isprintable()
        assert not set(text) & set(' #"<>\\^`{|}')


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("LOG_FORMAT", "TOKENHOUSE_LOG_FORMAT must be 'console' or 'json'"),
        ("TRACES", "TOKENHOUSE_TRACES must be true or false"),
        ("PUBLISH_SCOPES", "TOKENHOUSE_PUBLISH_SCOPES must be true or false"),
        ("LOG_LEVEL", "TOKENHOUSE_LOG_LEVEL must be 'debug', 'info', 'warning' or 'error'"),
    ],
)
def test_a_choice_says_what_is_allowed(checkout: Path, name: str, told: str) -> None:
    assert refusal(checkout, **{name: "loud"}) == told


def test_the_header_of_a_certificate_and_its_format_are_checked(checkout: Path) -> None:
    assert load(checkout, MTLS_HEADER="X-Forwarded-Client-Cert", MTLS_FORMAT="xfcc").mtls_format == "xfcc"
    rule = "TOKENHOUSE_MTLS_HEADER must be the name of a header: 1 to 64 letters, digits and hyphens"
    for wrong in ("Client_Cert", "Client Cert", "Client-Cert:", "x" * 65, "Clïent"):
        assert refusal(checkout, MTLS_HEADER=wrong) == rule
    assert refusal(checkout, MTLS_FORMAT="pem") == "TOKENHOUSE_MTLS_FORMAT must be 'rfc9440', 'xfcc' or 'nginx'"
    behind_a_proxy = {"TRUSTED_PROXIES": "10.0.0.1"}
    with_anchors = {**behind_a_proxy, "MTLS_TRUST_ANCHORS": "ca.pem"}
    assert load(checkout, MTLS_CRLS="a.pem, /b.crl", **with_anchors).mtls_crls == (
        PROJECT_FOLDER / "a.pem",
        Path("/b.crl"),
    )
    for wrong in (",", "a,,b"):
        assert refusal(checkout, MTLS_CRLS=wrong) == "TOKENHOUSE_MTLS_CRLS must be comma-separated paths of files"
    assert load(checkout, MTLS_URL="https://mtls.example.com", **behind_a_proxy).mtls_url == "https://mtls.example.com"
    told = refusal(checkout, MTLS_URL="https://mtls.example.com/")
    assert told == ISSUER_RULE.replace("TOKENHOUSE_ISSUER", "TOKENHOUSE_MTLS_URL")


def test_a_setting_for_certificates_that_would_do_nothing_stops_the_start(checkout: Path) -> None:
    told = refusal(checkout, MTLS_CRLS="ca.crl", TRUSTED_PROXIES="10.0.0.1")
    assert told == "TOKENHOUSE_MTLS_CRLS needs TOKENHOUSE_MTLS_TRUST_ANCHORS, whose authorities sign the lists"
    for setting in ({"MTLS_TRUST_ANCHORS": "ca.pem"}, {"MTLS_URL": "https://mtls.example.com"}):
        assert refusal(checkout, **setting) == (
            "TOKENHOUSE_MTLS_TRUST_ANCHORS and TOKENHOUSE_MTLS_URL need TOKENHOUSE_TRUSTED_PROXIES: only a trusted "
            "proxy may forward a certificate"
        )


@pytest.mark.parametrize(("value", "seconds"), [("0", 0), ("90s", 90), ("1h", 3600)])
def test_nonces_live_for_at_most_an_hour(checkout: Path, value: str, seconds: int) -> None:
    assert load(checkout, DPOP_NONCE_LIFETIME=value).dpop_nonce_lifetime == seconds
    assert refusal(checkout, DPOP_NONCE_LIFETIME="61m").startswith("TOKENHOUSE_DPOP_NONCE_LIFETIME must be ")


@pytest.mark.parametrize("value", ["1", "true", '""'])
def test_a_path_in_toml_is_a_string(checkout: Path, value: str) -> None:
    (checkout / "config/production.toml").write_text(f"keyring = {value}")
    assert refusal(checkout) == "TOKENHOUSE_KEYRING must be the path of a file, `database`, or env:NAME"


def test_paths_mean_the_projects_folder(checkout: Path) -> None:
    assert load(checkout, KEYRING="keys/ring.toml").keyring == PROJECT_FOLDER / "keys/ring.toml"
    assert load(checkout, KEYRING="/etc/ring.toml").keyring == Path("/etc/ring.toml")


def test_settings_that_are_shown_hide_their_secrets(checkout: Path) -> None:
    loaded = load(
        checkout,
        SECRET_PEPPERS="p1:" + "hidden" * 8,
        DATABASE_URL="postgresql://u:hidden@h/n",
        KEYRING_PASSPHRASE="hidden",
    )
    for shown in (repr(loaded), str(loaded), repr(loaded.secret_peppers), loaded.model_dump_json()):
        assert "hidden" not in shown


@pytest.mark.parametrize(
    "url",
    [
        "redis://localhost",
        "redis://localhost:6380/3",
        "redis://user:p%40ss@redis.example.com:6379/0?socket_timeout=0.5",
        "rediss://redis.example.com:6380/?ssl_ca_certs=/etc/ca.pem",
        "redis://[::1]:6379/",
        "unix:///run/redis/redis.sock?db=1",
    ],
)
def test_a_redis_url_is_taken_as_it_is(checkout: Path, url: str) -> None:
    loaded = load(checkout, REDIS_URL=url)
    assert loaded.redis_url is not None
    assert loaded.redis_url.get_secret_value() == url
    assert url not in repr(loaded)


@pytest.mark.parametrize(
    "url",
    [
        "localhost:6379",
        "http://localhost",
        "redis://",
        "redis://localhost:99999",
        "redis://localhost/abc",
        "redis://localhost/1/2",
        "redis://localhost?unknown=1",
        "redis://localhost?socket_timeout=soon",
        "redis://localhost?decode_responses=true",
        "redis://:a-secret@host with blanks/x",
        "rediss://",
        "unix://",
    ],
)
def test_another_redis_url_is_refused_and_not_quoted(checkout: Path, url: str) -> None:
    assert refusal(checkout, REDIS_URL=url) == (
        "TOKENHOUSE_REDIS_URL must be redis://[USER:PASSWORD@]HOST[:PORT][/NUMBER], rediss://… (TLS) or unix://PATH"
    )


@pytest.mark.parametrize(
    ("given", "rate"),
    [("1/second", (1, 1)), ("20/minute", (20, 60)), ("999999999/hour", (999_999_999, 3600)), ("5/day", (5, 86400))],
)
def test_a_rate_is_a_number_and_a_unit(checkout: Path, given: str, rate: tuple[int, int]) -> None:
    assert load(checkout, RATELIMIT_FAILURES=given).ratelimit_failures == rate
    assert format_rate(Rate(*rate)) == given


@pytest.mark.parametrize("given", ["20", "0/minute", "-1/minute", "1.5/minute", "20 / minute", "1234567890/day"])
def test_another_rate_is_refused(checkout: Path, given: str) -> None:
    assert refusal(checkout, RATELIMIT_FAILURES=given) == (
        "TOKENHOUSE_RATELIMIT_FAILURES must be a number and a unit such as 20/minute: second, minute, hour or day"
    )


def test_networks_of_key_sets_are_networks(checkout: Path) -> None:
    loaded = load(checkout, JWKS_URI_NETWORKS="10.0.0.0/8, fd00::/8,192.0.2.1")
    assert list(map(str, loaded.jwks_uri_networks)) == ["10.0.0.0/8", "fd00::/8", "192.0.2.1/32"]
    for wrong in ("unix", "10.0.0.1/8", "example.com", "10.0.0.0/33", "10.0.0.0/8;fd00::/8"):
        rule = "must be comma-separated networks such as 10.0.0.0/8 or fd00::/8, without host bits"
        assert refusal(checkout, JWKS_URI_NETWORKS=wrong) == f"TOKENHOUSE_JWKS_URI_NETWORKS {rule}"


@pytest.mark.parametrize(
    ("written", "address"),
    [
        ("0.0.0.0:9464", ("0.0.0.0", 9464)),  # noqa: S104 - Compared, not bound.
        ("[::1]:1", ("::1", 1)),
        ("metrics.internal:65535", ("metrics.internal", 65535)),
        ("", None),
    ],
)
def test_the_metrics_address_is_a_host_and_a_port_or_none(
    checkout: Path, written: str, address: tuple[str, int] | None
) -> None:
    assert load(checkout, METRICS_ADDRESS=written).metrics_address == address


@pytest.mark.parametrize(
    "written",
    ["9464", ":9464", "localhost", "localhost:", "localhost:0", "localhost:65536", "::1:1", "a b:1", "[x]:1"],
)
def test_another_metrics_address_is_refused(checkout: Path, written: str) -> None:
    assert refusal(checkout, METRICS_ADDRESS=written) == (
        "TOKENHOUSE_METRICS_ADDRESS must be HOST:PORT, such as 127.0.0.1:9464 or [::1]:9464, or empty for none"
    )


@pytest.mark.parametrize("name", ["", "a b", "é", "x" * 65, "a/b"])
def test_a_server_name_is_a_word(name: str) -> None:
    with pytest.raises(ValueError, match="1 to 64 characters"):
        parse_server_name(name)


@pytest.mark.parametrize(("host", "name"), [("tokens-1", "tokens-1"), ("é b" * 30, "--b" * 21 + "-"), ("", "server")])
def test_the_name_of_the_machine_is_made_one(monkeypatch: pytest.MonkeyPatch, host: str, name: str) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: host)
    assert default_server_name() == name
    assert parse_server_name(name) == name


@pytest.mark.parametrize("parameter", ["password", "sslpassword"])
def test_a_password_as_a_parameter_of_the_database_url_is_refused(parameter: str) -> None:
    with pytest.raises(ValueError, match="must have the password before the host") as caught:
        parse_database_url(f"postgresql+psycopg://a@b/c?{parameter}=hidden")
    assert "hidden" not in str(caught.value)
