"""The ``flask`` command as a process: bytes, streams, status, locale, help, and where its settings come from."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from functional.commands import ids, refusal
from support.server import FLASK, Installation, run
from unit.harness import Harness

from app.config.values import PROJECT_FOLDER

SECRET = "an-imported-secret-of-some-length"


def test_help_tells_what_each_command_does(harness: Harness) -> None:
    done = harness.run("clients", "--help")
    assert done.exit_code == 0
    for verb in ("create", "list", "show", "update", "disable", "enable", "delete"):
        assert re.search(rf"^  {verb} +[A-Z].*\.$", done.stdout, re.MULTILINE)
        assert harness.run("clients", verb, "--help").exit_code == 0


def test_a_script_makes_uses_and_ends_a_client(installation: Installation) -> None:
    made = installation.flask_json("clients", "create", "A script", "--scope", "read")
    shown = installation.flask_json("clients", "show", made["client_id"])
    assert (shown["client_name"], shown["scope"], shown["secrets"][0]["last_four"]) == (
        "A script",
        "read",
        made["client_secret"][-4:],
    )
    done = installation.flask("clients", "delete", made["client_id"], "--yes")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", f"{made['client_id']} was deleted.\n")


def test_a_failure_is_a_status_and_one_line(installation: Installation) -> None:
    done = installation.flask("clients", "show", "nobody")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "Error: there is no client 'nobody': `flask clients list` shows all\n"


def test_a_secret_comes_from_a_real_pipe(installation: Installation) -> None:
    done = installation.flask(
        "clients", "create", "Piped", "--secret-file", "-", "--json", stdin=f"{SECRET}\n".encode()
    )
    assert json.loads(done.stdout)["client_secret"] == SECRET
    assert done.stderr == ""


NO_UTF_8 = os.fsdecode(b"\xff\xfe")


@pytest.mark.parametrize(
    "arguments",
    [
        ["create", NO_UTF_8],
        ["create", "A", "--client-id", NO_UTF_8],
        ["create", "A", "--scope", NO_UTF_8],
        ["create", "A", "--audience", f"urn:{NO_UTF_8}"],
        ["create", "A", "--label", f"{NO_UTF_8}=x"],
        ["create", "A", "--label", NO_UTF_8],
        ["create", "A", "--description", NO_UTF_8],
        ["create", "A", "--secret-file", NO_UTF_8],
        ["create", "A", "--secret-out", f"/nowhere/{NO_UTF_8}"],
        ["show", NO_UTF_8],
        ["disable", NO_UTF_8],
        ["update", NO_UTF_8, "--name", "x"],
        ["delete", NO_UTF_8, "--yes"],
    ],
    ids=lambda arguments: "-".join(argument for argument in arguments if argument.isascii()),
)
def test_an_argument_that_is_not_utf_8_is_refused_with_one_line(harness: Harness, arguments: list[str]) -> None:
    refusal(harness.run("clients", *arguments))
    assert ids(harness) == []


def test_an_argument_that_is_not_utf_8_is_refused_by_the_real_process(installation: Installation) -> None:
    for arguments in (["show", NO_UTF_8], ["create", "A", "--secret-file", NO_UTF_8]):
        done = installation.flask("clients", *arguments)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.startswith("Error: ")
        assert done.stderr.count("\n") == 1


def test_names_of_all_scripts_are_printed_where_the_locale_knows_none(installation: Installation) -> None:
    installation.create_client("Größe 名前 😀", client_id="unicode")
    environment = {**installation.environment, "LC_ALL": "C", "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    for arguments in (["list"], ["show", "unicode"], ["show", "unicode", "--json"]):
        done = subprocess.run(
            [sys.executable, "-m", "flask", "clients", *arguments],
            env=environment,
            cwd=PROJECT_FOLDER,
            capture_output=True,
            check=False,
            timeout=60,
        )
        assert b"Traceback" not in done.stderr
        assert done.returncode == 0, done.stderr


def test_a_reader_that_goes_away_is_no_traceback(installation: Installation) -> None:
    command = f"{sys.executable} -m flask clients create Lost --json | true"
    done = subprocess.run(
        ["sh", "-c", command],
        env=installation.environment,
        cwd=PROJECT_FOLDER,
        capture_output=True,
        check=False,
        timeout=60,
    )
    assert b"Traceback" not in done.stderr


def test_wrong_settings_stop_a_command_with_one_line_for_each(tmp_path: Path) -> None:
    installation = Installation(tmp_path)
    installation.environment |= {
        "TOKENHOUSE_ISSUER": "tokens",
        "TOKENHOUSE_LOG_LEVEL": "loud",
        "TOKENHOUSE_DEFAULT_AUDIENCE": "urn:a",
    }
    done = installation.flask("clients", "list")
    assert (done.returncode, done.stdout) == (4, "")
    lines = done.stderr.removeprefix("tokenhouse: ").splitlines()
    assert [line.split(" ")[0] for line in lines] == ["TOKENHOUSE_ISSUER", "TOKENHOUSE_LOG_LEVEL"]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of the checkout, with its own ``.env``."""
    for name in ("app", "config", "migrations"):
        shutil.copytree(PROJECT_FOLDER / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(PROJECT_FOLDER / "wsgi.py", tmp_path)
    return tmp_path


def settings_seen_by_flask(checkout: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("TOKENHOUSE_", "FLASK_"))}
    (checkout / "wsgi.py").write_text(
        (checkout / "wsgi.py").read_text()
        + "\n@app.cli.command('seen')\ndef seen() -> None:\n"
        + "    s = app.extensions['tokenhouse'].settings\n    print(s.config, s.issuer, s.log_level)\n"
    )
    return subprocess.run(
        [sys.executable, "-m", "flask", "seen"],
        env={**inherited, **variables},
        cwd=checkout,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


DOTENV = (
    "TOKENHOUSE_CONFIG=development\nTOKENHOUSE_ISSUER=http://localhost:9000\n"
    f"TOKENHOUSE_LOG_LEVEL=debug\nTOKENHOUSE_SECRET_PEPPERS=dev1:{'d' * 32}\n"
)


def test_the_flask_command_uses_dotenv_where_nothing_else_is_said(checkout: Path) -> None:
    (checkout / ".env").write_text(DOTENV)
    assert settings_seen_by_flask(checkout).stdout == "development http://localhost:9000 debug\n"


def test_the_environment_wins_over_dotenv_in_the_flask_command(checkout: Path) -> None:
    (checkout / ".env").write_text(DOTENV)
    seen = settings_seen_by_flask(checkout, TOKENHOUSE_ISSUER="http://localhost:7000", TOKENHOUSE_LOG_LEVEL="debug")
    assert seen.stdout == "development http://localhost:7000 debug\n"


def test_a_production_flask_command_never_mixes_in_developments_values(checkout: Path) -> None:
    (checkout / ".env").write_text(DOTENV)
    given = {"TOKENHOUSE_CONFIG": "production", "TOKENHOUSE_ISSUER": "https://tokens.example.com"}
    seen = settings_seen_by_flask(checkout, **given, TOKENHOUSE_SECRET_PEPPERS="p1:" + "p" * 32)
    assert seen.stdout == "production https://tokens.example.com info\n"
    refused = settings_seen_by_flask(checkout, **given)
    assert (refused.returncode, refused.stdout) == (4, "")
    assert refused.stderr.startswith("tokenhouse: TOKENHOUSE_SECRET_PEPPERS is required")


def test_a_variable_whose_name_is_not_utf_8_is_nobodys_business(installation: Installation) -> None:
    environment = {os.fsencode(name): os.fsencode(value) for name, value in installation.environment.items()}
    done = subprocess.run(
        [sys.executable, "-m", "flask", "clients", "list"],
        env={**environment, b"\xff": b"1"},
        cwd=PROJECT_FOLDER,
        capture_output=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr


def test_a_servers_issuer_does_not_become_development_without_a_word(checkout: Path) -> None:
    (checkout / ".env").write_text(DOTENV)
    seen = settings_seen_by_flask(checkout, TOKENHOUSE_ISSUER="https://tokens.example.com")
    assert seen.stdout == "development https://tokens.example.com debug\n"
    assert "for production set TOKENHOUSE_CONFIG=production" in seen.stderr
    meant = settings_seen_by_flask(
        checkout, TOKENHOUSE_ISSUER="https://tokens.example.com", TOKENHOUSE_CONFIG="development"
    )
    assert (meant.stdout, meant.stderr) == (seen.stdout, "")


@pytest.mark.parametrize(
    "words", [["--help"], ["clients", "create", "--help"], ["keys", "--help"], ["db", "upgrade", "--help"]]
)
def test_help_needs_no_settings(words: list[str]) -> None:
    done = run(FLASK, *words, environment={"PATH": os.environ["PATH"], "TOKENHOUSE_CONFIG": "production"})
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"Usage: {' '.join(['flask', *words[:-1]])}")


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_a_command_that_has_nothing_to_log_does_not_wait_for_slow_libraries(
    installation: Installation, log_format: str
) -> None:
    slow = ("structlog", "psycopg", "alembic", "gunicorn", "rich", "sqlalchemy.dialects.postgresql")
    program = (
        "import sys\n"
        "from app.cli.main import cli\n"
        "cli.main(['clients', 'list', '--json'], standalone_mode=False)\n"
        f"print([name for name in {slow} if name in sys.modules])\n"
    )
    environment = {**installation.environment, "TOKENHOUSE_LOG_FORMAT": log_format}
    done = run(sys.executable, "-c", program, environment=environment)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "[]")


def test_flask_help_says_what_this_is(installation: Installation) -> None:
    done = installation.flask("--help")
    assert done.stdout.splitlines()[2] == "  Tokenhouse: clients, signing keys and the database of this token server."
    assert [line.split()[0] for line in done.stdout.partition("Commands:\n")[2].splitlines()] == [
        "apis",
        "clients",
        "db",
        "doctor",
        "explain",
        "keys",
        "restore-check",
        "routes",
        "run",
        "servers",
        "shell",
        "tokens",
    ]
