"""Where settings come from: which layer wins, which names are known, and that all faults are told, no secret ever."""

import json
import os
import re
import tomllib
import warnings
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from unit.checkout import ENOUGH, ISSUER, PEPPER, load, refusal

from app.config.loader import DevelopmentWarning, UnknownSettingWarning, development_issuer, load_settings
from app.config.settings import SETTING_NAMES, Settings
from app.config.values import PROJECT_FOLDER
from app.errors import StartError

# Layers


LAYERS = ("built in", "default.toml", "production.toml", "file named in .env", ".env", "file named in the environment")


@pytest.mark.parametrize("highest", range(len(LAYERS)), ids=LAYERS)
def test_of_all_layers_that_set_a_value_the_highest_wins(checkout: Path, highest: int) -> None:
    lines = {}
    if highest >= 1:
        (checkout / "config/default.toml").write_text('access_token_lifetime = "11m"')
    if highest >= 2:
        (checkout / "config/production.toml").write_text('access_token_lifetime = "12m"')
    if highest == 3:
        (checkout / "lifetime").write_text("13m\n")
        lines["TOKENHOUSE_ACCESS_TOKEN_LIFETIME_FILE"] = "lifetime"
    if highest >= 4:
        lines["TOKENHOUSE_ACCESS_TOKEN_LIFETIME"] = "14m"
    (checkout / ".env").write_text("".join(f"{name}={value}\n" for name, value in lines.items()))
    variables = {}
    if highest >= 5:
        (checkout / "other").write_text("15m\n")
        variables["ACCESS_TOKEN_LIFETIME_FILE"] = "other"
    expected = {0: 3600}.get(highest, (10 + highest) * 60)
    assert load(checkout, **variables).access_token_lifetime == expected


def test_the_environment_wins_over_every_other_layer(checkout: Path) -> None:
    for name in ("default", "production"):
        (checkout / f"config/{name}.toml").write_text('access_token_lifetime = "11m"')
    (checkout / ".env").write_text("TOKENHOUSE_ACCESS_TOKEN_LIFETIME=14m\n")
    assert load(checkout, ACCESS_TOKEN_LIFETIME="16m").access_token_lifetime == 960


def test_the_environment_wins_over_a_file_that_dotenv_names(checkout: Path) -> None:
    (checkout / ".env").write_text("TOKENHOUSE_ACCESS_TOKEN_LIFETIME_FILE=nowhere-else\n")
    (checkout / "nowhere-else").write_text("14m")
    assert load(checkout, ACCESS_TOKEN_LIFETIME="16m").access_token_lifetime == 960


def test_only_the_file_of_the_named_configuration_counts(checkout: Path) -> None:
    (checkout / "config/testing.toml").write_text('log_level = "debug"')
    (checkout / "config/production.toml").write_text('log_level = "error"')
    assert load(checkout, CONFIG="testing").log_level == "debug"
    assert load(checkout).log_level == "error"
    assert load(checkout).config == "production"


def test_an_empty_variable_is_an_absent_one(checkout: Path) -> None:
    (checkout / "config/production.toml").write_text('access_token_lifetime = "12m"')
    assert load(checkout, ACCESS_TOKEN_LIFETIME="", CONFIG="").access_token_lifetime == 720


def test_a_value_and_a_file_of_one_name_stop_the_start(checkout: Path) -> None:
    (checkout / "value").write_text("15m")
    assert refusal(checkout, ACCESS_TOKEN_LIFETIME="1h", ACCESS_TOKEN_LIFETIME_FILE="value") == (
        "TOKENHOUSE_ACCESS_TOKEN_LIFETIME and TOKENHOUSE_ACCESS_TOKEN_LIFETIME_FILE are both set: set one of them"
    )


@pytest.mark.parametrize(
    ("content", "value"),
    [
        (b"secret phrase", "secret phrase"),
        (b"secret phrase\n", "secret phrase"),
        (b"secret phrase\r\n", "secret phrase"),
        (b"secret phrase\n\n", "secret phrase\n"),
        (b" secret phrase \n", " secret phrase "),
        ("gehéim\n".encode(), "gehéim"),
    ],
)
def test_one_trailing_newline_of_a_file_is_dropped(checkout: Path, content: bytes, value: str) -> None:
    (checkout / "phrase").write_bytes(content)
    passphrase = load(checkout, KEYRING_PASSPHRASE_FILE=str(checkout / "phrase")).keyring_passphrase
    assert passphrase is not None
    assert passphrase.get_secret_value() == value


def test_a_relative_file_means_the_projects_folder(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (checkout / "lifetime").write_text("15m")
    elsewhere = checkout / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert load(checkout, ACCESS_TOKEN_LIFETIME_FILE="lifetime").access_token_lifetime == 900


def test_a_file_that_is_not_there_stops_the_start(checkout: Path) -> None:
    assert refusal(checkout, ISSUER="", ISSUER_FILE="nowhere") == (
        "TOKENHOUSE_ISSUER_FILE names nowhere, which cannot be read: No such file or directory"
    )


def test_a_file_that_is_not_text_stops_the_start(checkout: Path) -> None:
    (checkout / "binary").write_bytes(b"\xff\xfe")
    assert refusal(checkout, ISSUER="", ISSUER_FILE="binary") == (
        "TOKENHOUSE_ISSUER_FILE names binary, which cannot be read: it is not UTF-8 text"
    )


# .env


def test_dotenv_counts_where_no_configuration_is_named(checkout: Path) -> None:
    (checkout / ".env").write_text("TOKENHOUSE_CONFIG=development\nTOKENHOUSE_LOG_LEVEL=debug\n")
    with pytest.warns(DevelopmentWarning, match="for production set TOKENHOUSE_CONFIG=production"):
        loaded = load(checkout)
    assert (loaded.config, loaded.log_level, loaded.log_format) == ("development", "debug", "console")


def test_dotenv_counts_where_the_configuration_is_its_own(checkout: Path) -> None:
    (checkout / ".env").write_text("TOKENHOUSE_CONFIG=development\nTOKENHOUSE_LOG_LEVEL=debug\n")
    assert load(checkout, CONFIG="development").log_level == "debug"


def test_dotenv_that_names_no_configuration_counts_for_each(checkout: Path) -> None:
    (checkout / ".env").write_text("TOKENHOUSE_LOG_LEVEL=debug\n")
    assert load(checkout, CONFIG="testing").log_level == "debug"


def test_a_production_command_never_mixes_in_developments_values(checkout: Path) -> None:
    (checkout / ".env").write_text(f"TOKENHOUSE_CONFIG=development\nTOKENHOUSE_SECRET_PEPPERS={PEPPER}\n")
    with pytest.raises(StartError, match=r"^TOKENHOUSE_SECRET_PEPPERS is required"):
        load_settings({"TOKENHOUSE_CONFIG": "production", "TOKENHOUSE_ISSUER": ISSUER}, folder=checkout)


def test_a_typing_error_in_dotenv_of_another_configuration_does_not_matter(checkout: Path) -> None:
    (checkout / ".env").write_text("TOKENHOUSE_CONFIG=development\nTOKENHOUSE_ISUER=x\n")
    assert load(checkout, CONFIG="production").issuer == ISSUER


def test_a_dollar_sign_in_dotenv_is_a_dollar_sign(checkout: Path) -> None:
    (checkout / ".env").write_text("TOKENHOUSE_KEYRING_PASSPHRASE='a${HOME}$b'\n")
    passphrase = load(checkout).keyring_passphrase
    assert passphrase is not None
    assert passphrase.get_secret_value() == "a${HOME}$b"


@pytest.mark.parametrize("content", [b"TOKENHOUSE_LOG_LEVEL=\xff\n", b"\xff\xfe\x00"])
def test_a_dotenv_that_is_not_text_stops_the_start_with_one_line(checkout: Path, content: bytes) -> None:
    (checkout / ".env").write_bytes(content)
    assert "\n" not in refusal(checkout)
    assert ".env" in refusal(checkout)


def test_the_processs_own_environment_is_the_default(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("TOKENHOUSE_")]:
        monkeypatch.delenv(name)
    for name, value in ENOUGH.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("TOKENHOUSE_LOG_LEVEL", "error")
    assert load_settings(folder=checkout).log_level == "error"


# Configuration files


def test_a_configuration_that_is_not_there_stops_the_start(checkout: Path) -> None:
    (checkout / "config/keyring.example.toml").touch()
    assert refusal(checkout, CONFIG="staging") == (
        "TOKENHOUSE_CONFIG is staging, but there are only: development, production, testing"
    )


@pytest.mark.parametrize("config", ["../production", "Production", "-x", "a b", "/etc/passwd"])
def test_a_configuration_is_a_name_and_no_path(checkout: Path, config: str) -> None:
    (checkout / "production.toml").touch()
    assert "\n" not in refusal(checkout, CONFIG=config)
    assert refusal(checkout, CONFIG=config).startswith("TOKENHOUSE_CONFIG ")


def test_an_unknown_setting_in_a_configuration_file_stops_the_start(checkout: Path) -> None:
    (checkout / "config/production.toml").write_text("colour = 1")
    assert refusal(checkout) == "config/production.toml has an unknown setting 'colour'"
    (checkout / "config/production.toml").write_text('isuer = "https://x.example"')
    assert refusal(checkout) == (
        "config/production.toml has an unknown setting 'isuer': did you mean TOKENHOUSE_ISSUER (in TOML, issuer)?"
    )


def test_a_configuration_file_that_is_not_toml_stops_the_start(checkout: Path) -> None:
    (checkout / "config/production.toml").write_text("secret_peppers = p1:a-secret-that-must-not-show")
    told = refusal(checkout)
    assert re.fullmatch(r"config/production\.toml cannot be read: .*line 1.*", told)
    assert "must-not-show" not in told


def test_default_toml_shows_the_real_default_of_every_setting() -> None:
    text = (PROJECT_FOLDER / "config/default.toml").read_text()
    assert tomllib.loads(text) == {}
    commented = dict(re.findall(r"^# ([a-z_]+) = (.*)$", text, re.MULTILINE))
    assert list(commented) == [field for field in Settings.model_fields if field != "config"]
    shown = tomllib.loads("\n".join(f"{name} = {value}" for name, value in commented.items()))
    without_default = {
        "issuer",
        "secret_peppers",
        "encryption_keys",
        "redis_url",
        "token_quota",
        "jwks_uri_networks",
        "keyring_passphrase",
        "keyring_propagation",
        "default_audience",
        "traces",
        "mtls_url",
        "mtls_trust_anchors",
        "mtls_crls",
        "trusted_proxies",
        "snapshot",
        "server_name",
    }
    assert {name for name in shown if "#" in commented[name]} == without_default
    shown = {name: value for name, value in shown.items() if name not in without_default}
    made = Settings(issuer=ISSUER, secret_peppers=PEPPER, **shown)  # type: ignore[arg-type]
    assert made == Settings(issuer=ISSUER, secret_peppers=PEPPER)  # type: ignore[arg-type]


def test_the_projects_own_configuration_files_are_good() -> None:
    for config in ("development", "production", "testing"):
        assert load_settings({**ENOUGH, "TOKENHOUSE_CONFIG": config}).config == config


@pytest.mark.parametrize(
    ("host", "port", "issuer"),
    [
        ("", "", "http://localhost:8080"),
        ("127.0.0.1", "9000", "http://localhost:9000"),
        ("0.0.0.0", "", "http://localhost:8080"),  # noqa: S104
        ("::", "", "http://localhost:8080"),
        ("::1", "9000", "http://[::1]:9000"),
        ("127.0.0.2", "80", "http://127.0.0.2"),
    ],
)
def test_a_developers_issuer_comes_from_host_and_port(checkout: Path, host: str, port: str, issuer: str) -> None:
    assert development_issuer(host, port) == issuer
    environment = {"TOKENHOUSE_CONFIG": "development", "TOKENHOUSE_SECRET_PEPPERS": PEPPER, "HOST": host, "PORT": port}
    if port != "80":
        assert load_settings(environment, folder=checkout).issuer == issuer


# Unknown names


@pytest.mark.parametrize(
    ("name", "suggested"),
    [
        ("ISUER", "ISSUER"),
        ("ISSUER_", "ISSUER"),
        ("DATABASE_URI", "DATABASE_URL"),
        ("KEY_RING", "KEYRING"),
        ("SECRET_PEPPER", "SECRET_PEPPERS"),
        ("SECRET_PEPPER_FILE", "SECRET_PEPPERS"),
        ("ACCESS_TOKEN_LIFETIMES", "ACCESS_TOKEN_LIFETIME"),
        ("issuer", "ISSUER"),
    ],
)
def test_a_typing_error_in_a_name_stops_the_start_with_a_suggestion(checkout: Path, name: str, suggested: str) -> None:
    assert refusal(checkout, **{name: "a-secret"}) == (
        f"TOKENHOUSE_{name} in the environment is not a setting: "
        f"did you mean TOKENHOUSE_{suggested} (in TOML, {suggested.lower()})?"
    )


def test_a_typing_error_in_dotenv_stops_the_start(checkout: Path) -> None:
    (checkout / ".env").write_text("TOKENHOUSE_ISUER=x\n")
    assert refusal(checkout).startswith("TOKENHOUSE_ISUER in .env is not a setting: did you mean TOKENHOUSE_ISSUER ")


@pytest.mark.parametrize("mode", [0o602, 0o620, 0o666])
def test_a_file_with_a_secret_that_others_may_change_stops_the_start(checkout: Path, mode: int) -> None:
    told = f"may be changed by others (mode {mode:04o}): `chmod go-w"
    peppers = checkout / "peppers"
    peppers.write_text(PEPPER)
    dotenv, toml = checkout / ".env", checkout / "config" / "production.toml"
    for path in (peppers, dotenv, toml):
        path.touch()
        path.chmod(mode)
    without = {"TOKENHOUSE_ISSUER": ISSUER}
    with pytest.raises(StartError) as caught:
        load_settings({**without, "TOKENHOUSE_SECRET_PEPPERS_FILE": str(peppers)}, folder=checkout)
    assert str(caught.value) == f"{peppers} {told} {peppers}`"
    dotenv.write_text(f"TOKENHOUSE_SECRET_PEPPERS={PEPPER}\n")
    assert refusal(checkout) == f"{dotenv} {told} {dotenv}`"
    dotenv.write_text("TOKENHOUSE_LOG_LEVEL=info\n")
    toml.write_text(f'secret_peppers = "{PEPPER}"\n')
    assert refusal(checkout) == f"{toml} {told} {toml}`"
    # Without a secret in it, it is nobody's business.
    toml.write_text('log_level = "info"\n')
    assert load(checkout).log_level == "info"


def test_a_file_with_a_secret_of_another_user_stops_the_start(checkout: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give a file away")
    peppers = checkout / "peppers"
    peppers.write_text(PEPPER)
    os.chown(peppers, 65534, -1)
    with pytest.raises(StartError) as caught:
        load_settings({"TOKENHOUSE_ISSUER": ISSUER, "TOKENHOUSE_SECRET_PEPPERS_FILE": str(peppers)}, folder=checkout)
    assert str(caught.value) == f"{peppers} belongs to another user (number 65534): `chown root {peppers}`"


def test_what_is_no_regular_file_is_read(checkout: Path) -> None:
    reading, writing = os.pipe()
    os.write(writing, PEPPER.encode())
    os.close(writing)
    given = {"TOKENHOUSE_ISSUER": ISSUER, "TOKENHOUSE_SECRET_PEPPERS_FILE": f"/dev/fd/{reading}"}
    loaded = load_settings(given, folder=checkout)
    os.close(reading)
    assert loaded.secret_peppers[0].id == "p1"


def test_another_unknown_name_is_warned_of_without_its_value(checkout: Path) -> None:
    with pytest.warns(UnknownSettingWarning) as caught:
        load(checkout, COLOUR="a-secret")
    assert [str(warning.message) for warning in caught] == [
        "TOKENHOUSE_COLOUR in the environment is not a setting and is ignored"
    ]


@pytest.mark.parametrize(
    "name",
    ["SERVICE_HOST", "SERVICE_PORT", "SERVICE_PORT_HTTP", "PORT", "PORT_8080_TCP", "PORT_8080_TCP_ADDR"],
)
def test_what_kubernetes_injects_is_ignored(checkout: Path, name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load(checkout, **{name: "tcp://10.0.0.1:8080"}).issuer == ISSUER


def test_names_without_the_prefix_are_nobodys_business(checkout: Path) -> None:
    assert load_settings({**ENOUGH, "ISUER": "x", "TOKENHOUSES": "y"}, folder=checkout).issuer == ISSUER


# Faults


def test_all_wrong_values_are_told_at_once(checkout: Path) -> None:
    told = refusal(
        checkout, ISSUER="urn:x", ACCESS_TOKEN_LIFETIME="1s", LOG_LEVEL="loud", DATABASE_URL="y", SECRET_PEPPERS=""
    )
    assert sorted(line.split(" ")[0] for line in told.splitlines()) == [
        "TOKENHOUSE_ACCESS_TOKEN_LIFETIME",
        "TOKENHOUSE_DATABASE_URL",
        "TOKENHOUSE_ISSUER",
        "TOKENHOUSE_LOG_LEVEL",
        "TOKENHOUSE_SECRET_PEPPERS",
    ]


def test_two_typing_errors_are_told_at_once(checkout: Path) -> None:
    told = refusal(checkout, ISUER="x", LOG_LEVELS="y")
    assert [line.split(" ")[0] for line in told.splitlines()] == ["TOKENHOUSE_ISUER", "TOKENHOUSE_LOG_LEVELS"]


def test_a_typing_error_and_a_wrong_value_are_told_at_once(checkout: Path) -> None:
    told = refusal(checkout, ISUER="x", LOG_LEVEL="loud")
    assert {line.split(" ")[0] for line in told.splitlines()} == {"TOKENHOUSE_ISUER", "TOKENHOUSE_LOG_LEVEL"}


def test_two_files_that_cannot_be_read_are_told_at_once(checkout: Path) -> None:
    told = refusal(checkout, KEYRING_PASSPHRASE_FILE="a", LOG_LEVEL_FILE="b")
    assert {line.split(" ")[0] for line in told.splitlines()} == {
        "TOKENHOUSE_KEYRING_PASSPHRASE_FILE",
        "TOKENHOUSE_LOG_LEVEL_FILE",
    }


def test_two_unknown_settings_in_a_file_are_told_at_once_and_in_order(checkout: Path) -> None:
    (checkout / "config/production.toml").write_text("colour = 1\nanimal = 2\n")
    assert re.findall("'([a-z]+)'", refusal(checkout)) == ["colour", "animal"]


@example(secret="p1:s3cr3t-value", name="SECRET_PEPPERS", in_a_file=False)
@example(secret="postgresql+mysql://user:s3cr3t-value@host/name", name="DATABASE_URL", in_a_file=False)
@given(
    secret=st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=9).map(
        lambda text: f"s3cr3t-{text}"
    ),
    name=st.sampled_from([name.removeprefix("TOKENHOUSE_") for name in SETTING_NAMES if name != "TOKENHOUSE_CONFIG"]),
    in_a_file=st.booleans(),
)
def test_no_error_ever_shows_a_value(checkout: Path, secret: str, name: str, in_a_file: bool) -> None:  # noqa: FBT001
    variables = {name: secret}
    if in_a_file:
        (checkout / "value").write_text(secret, newline="")
        variables = {name: "", f"{name}_FILE": "value"}
    with pytest.raises(StartError) as caught:
        load(checkout, **{"LOG_LEVEL": "loud", **variables})
    error = caught.value
    assert "s3cr3t" not in str(error) + repr(error)
    assert error.__cause__ is None
    assert error.__suppress_context__ or error.__context__ is None


@given(st.sampled_from(["secret_peppers", "database_url", "keyring_passphrase"]), st.text(min_size=8))
def test_no_error_of_a_configuration_file_shows_a_secret(checkout: Path, name: str, text: str) -> None:
    secret = f"s3cr3t-{text}"
    for written in (json.dumps(secret), f"[{json.dumps(secret)}]", f"{{a={json.dumps(secret)}}}", secret):
        content = f'log_level = "loud"\n{name} = {written}\n'
        (checkout / "config/production.toml").write_bytes(content.encode("utf-8", "replace"))
        with pytest.raises(StartError) as caught:
            load(checkout, SECRET_PEPPERS="" if name == "secret_peppers" else PEPPER)
        assert "s3cr3t" not in str(caught.value)


def test_the_name_of_the_configuration_may_stand_in_a_file_too(checkout: Path) -> None:
    (checkout / "name").write_text("testing\n")
    (checkout / "config/testing.toml").write_text('log_level = "debug"')
    loaded = load(checkout, CONFIG_FILE="name")
    assert (loaded.config, loaded.log_level) == ("testing", "debug")


def test_a_configuration_file_cannot_name_the_configuration(checkout: Path) -> None:
    (checkout / "config/production.toml").write_text('config = "testing"')
    assert "config" in refusal(checkout)
