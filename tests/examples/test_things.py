"""The command-line tool among the examples: login, list-resources, logout."""

import json
import shutil
import signal
import subprocess
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest
from examples.stage import BROKEN, TOO_MANY, UNAVAILABLE, Stage
from support.server import NewClient, wait_until

from examples.programs import PROGRAMS, PYTHON, check_nothing_secret, read_counts

UNLOCK = 'printf x | gnome-keyring-daemon --unlock --components=secrets >/dev/null && exec "$@"'
"""A desktop's session with a keyring that is open, for as long as a command runs."""


class Tool:
    """The tool, with a home of its own."""

    def __init__(self, stage: Stage, folder: Path, place: str, client: NewClient) -> None:
        self.stage, self.home, self.place, self.client = stage, folder / "home", place, client
        self.metrics = folder / "things.prom"
        self.home.mkdir()

    @property
    def files(self) -> list[Path]:
        return sorted(path for path in (self.home / "config" / "things").glob("*") if path.name != "lock")

    def start(self, command: list[str], stdin: str | None = None, **more: str) -> subprocess.Popen[str]:
        environment = self.stage.environment(
            self.client,
            **{"HOME": str(self.home), "XDG_CONFIG_HOME": str(self.home / "config"), "THINGS_KEEP_IN": self.place,
               "PYTHONDONTWRITEBYTECODE": "1", **more},
        )  # fmt: skip
        return subprocess.Popen(
            command, env=environment, cwd=PROGRAMS, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            stdin=subprocess.PIPE if stdin is not None else subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip

    def run(self, *arguments: str, stdin: str | None = None, **more: str) -> tuple[int, str, str]:
        process = self.start([str(PYTHON), "things.py", *arguments], stdin, **more)
        out, err = process.communicate(stdin, timeout=60)
        check_nothing_secret(self.stage, self.client, out + err)
        return process.returncode, out, err


LISTED = (0, "ink\npaper\n", "")


@pytest.fixture
def tool(stage: Stage, tmp_path: Path) -> Tool:
    return Tool(stage, tmp_path, "file", stage.client())


def test_login_list_logout(tool: Tool) -> None:
    login = (0, f"Logged in as {tool.client.client_id}; the token is good for 3600 s.\n", "")
    assert tool.run("login") == login
    assert [tool.run("list-resources") for _ in range(3)] == [LISTED] * 3
    assert tool.stage.answered.token_statuses == [200]
    assert {path.name: path.stat().st_mode & 0o777 for path in tool.files} == {"login": 0o600, "token": 0o600}
    assert tool.client.secret not in (tool.files[0].read_text() + tool.files[1].read_text()), "only where it lies"
    assert tool.run("login") == login
    assert tool.run("logout") == (0, "Logged out.\n", "")
    assert tool.files == []
    assert tool.run("logout") == (0, "You were not logged in.\n", "")
    assert tool.run("list-resources") == (1, "", "not logged in: things.py login\n")


def test_it_asks_for_what_it_is_not_told(tool: Tool) -> None:
    unset = {"CLIENT_SECRET_FILE": "", "CLIENT_ID": ""}
    # Without a terminal the secret is read from standard input, and its prompt and warning go to stderr.
    status, out, _ = tool.run("login", stdin=f"{tool.client.client_id}\n{tool.client.secret}\n", **unset)
    assert (status, out) == (
        0, f"Client ID: Logged in as {tool.client.client_id}; the token is good for 3600 s.\n"
    )  # fmt: skip
    assert tool.run("list-resources", **unset) == LISTED
    assert tool.run("login", stdin="", **unset)[::2] == (1, "nothing was changed\n")
    assert tool.run("list-resources", **unset) == LISTED


def test_many_at_once_fetch_one_token(tool: Tool) -> None:
    assert tool.run("login")[0] == 0
    (tool.home / "config" / "things" / "token").unlink()
    with ThreadPoolExecutor(12) as pool:
        assert list(pool.map(lambda _: tool.run("list-resources"), range(12))) == [LISTED] * 12
    assert tool.stage.answered.token_statuses == [200, 200]


def test_a_token_is_replaced_before_it_ends_and_when_the_api_refuses_it(stage: Stage, tmp_path: Path) -> None:
    tool = Tool(stage, tmp_path, "file", stage.client(access_token_lifetime=4))
    assert tool.run("login")[0] == 0
    token = json.loads((tool.home / "config" / "things" / "token").read_text())
    assert tool.run("list-resources") == LISTED
    # As if two seconds had passed.
    (tool.home / "config" / "things" / "token").write_text(json.dumps(token | {"expires_at": token["expires_at"] - 3}))
    assert tool.run("list-resources") == LISTED
    assert stage.answered.token_statuses == [200, 200]
    stage.answered.api_faults.append(401)
    assert tool.run("list-resources", "--metrics", str(tool.metrics)) == LISTED
    assert read_counts(tool.metrics.read_text()) in ({"token ok": 1, "api ok": 1}, {"token ok": 2, "api ok": 1})
    assert stage.answered.unverifiable == []
    stage.answered.api_faults.extend([401, 401])
    assert tool.run("list-resources") == (1, "", "the API answered 401\n")
    stage.answered.api_faults.append(403)
    told = "the API answered 403: the token is good, but its scope does not allow this\n"
    assert tool.run("list-resources") == (1, "", told)


def test_what_is_away_is_asked_again_when_it_says(tool: Tool) -> None:
    tool.stage.answered.token_faults.extend(
        [(503, {"Retry-After": "1"}, UNAVAILABLE), (429, {"Retry-After": "1"}, TOO_MANY), (BROKEN, {}, {})]
    )
    tool.stage.answered.api_faults.extend([503, 429])
    assert tool.run("login")[0] == 0
    assert tool.run("list-resources") == LISTED
    assert tool.stage.answered.api_statuses == [503, 429, 200]


@pytest.mark.parametrize(
    ("code", "changes"),
    [
        ("invalid_client", {"CLIENT_ID": "nobody"}),
        ("invalid_scope", {"SCOPE": "things:write"}),
        ("server_error", {}),
        ("no_secret", {"CLIENT_SECRET_FILE": "/nowhere"}),
        ("unreachable", {"TOKEN_URL": "http://127.0.0.1:1/oauth/token"}),
    ],
)
def test_a_login_that_does_not_work_is_told_and_not_kept(tool: Tool, code: str, changes: dict[str, str]) -> None:
    if code == "server_error":
        tool.stage.answered.token_faults.extend([(503, {"Retry-After": "0"}, UNAVAILABLE)] * 5)
    status, out, err = tool.run("login", "--metrics", str(tool.metrics), **changes)
    assert (status, out, err.startswith(f"{code}: "), err.count("\n")) == (1, "", True, 1)
    assert code != "invalid_scope" or "things:write" in err
    assert read_counts(tool.metrics.read_text()) == {f"token {code}": 1}
    assert tool.files == []


def test_killed_at_any_moment_of_a_login_it_is_in_or_not(tool: Tool) -> None:
    tool.stage.answered.token_faults.append((503, {"Retry-After": "30"}, UNAVAILABLE))
    process = tool.start([str(PYTHON), "things.py", "login"])
    wait_until(lambda: bool(tool.stage.answered.token_statuses))
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert tool.run("list-resources") == (1, "", "not logged in: things.py login\n")
    assert tool.run("login")[0] == 0
    assert tool.run("list-resources") == LISTED


@pytest.mark.parametrize("content", ["", "x", "[]", "{}", '{"access_token": 1}', '{"access_token": "x"}', "null"])
def test_a_token_file_that_is_broken_costs_one_request(tool: Tool, content: str) -> None:
    assert tool.run("login")[0] == 0
    (tool.home / "config" / "things" / "token").write_text(content)
    assert tool.run("list-resources") == LISTED
    assert tool.stage.answered.token_statuses == [200, 200]


def test_a_secret_that_was_rotated_is_taken(tool: Tool) -> None:
    assert tool.run("login")[0] == 0
    secret = Path(tool.stage.environment(tool.client)["CLIENT_SECRET_FILE"])
    with tool.stage.server.context():
        new, _ = tool.stage.server.services.clients.secrets.rotate(tool.client.client_id, overlap=timedelta())
    (tool.home / "config" / "things" / "token").unlink()
    status, _, err = tool.run("list-resources")
    assert (status, err.startswith("invalid_client: "), err.endswith("; then: things.py login\n")) == (1, True, True)
    secret.write_text(new.secret)
    assert tool.run("list-resources") == LISTED


def test_a_folder_that_cannot_be_made_is_told(tool: Tool) -> None:
    (tool.home / "config").write_text("")
    folder = tool.home / "config" / "things"
    assert tool.run("login") == (1, "", f"{folder}: Not a directory\n")


def test_what_is_not_set_is_named(tool: Tool) -> None:
    assert tool.run("login")[0] == 0
    assert tool.run("list-resources", API_URL="") == (1, "", "API_URL must be set\n")


def test_a_system_without_a_keyring_is_told_when_one_is_asked_for(tool: Tool) -> None:
    told = "this system has no keyring: THINGS_KEEP_IN=file keeps the login in files of mode 0600\n"
    nowhere = {"PYTHON_KEYRING_BACKEND": "keyring.backends.fail.Keyring"}
    assert tool.run("login", THINGS_KEEP_IN="keyring", **nowhere) == (1, "", told)
    assert tool.run("login", THINGS_KEEP_IN="safe") == (1, "", "THINGS_KEEP_IN is 'safe': file or keyring\n")
    assert tool.run("login", THINGS_KEEP_IN="", **nowhere)[0] == 0
    assert [path.name for path in tool.files] == ["login", "token"]


def test_the_systems_keyring_keeps_it_and_no_file_does(stage: Stage, tmp_path: Path) -> None:
    for needed in ("dbus-run-session", "gnome-keyring-daemon"):
        if shutil.which(needed) is None:
            pytest.skip(f"{needed} is not installed")
    tool = Tool(stage, tmp_path, "keyring", stage.client())
    steps = ["login", "list-resources", "list-resources", "logout", "list-resources"]
    python = f"{PYTHON} things.py"
    script = f"unset CLIENT_SECRET_FILE; {'; '.join(f'{python} {step}; echo $?' for step in steps)}"
    process = tool.start(
        ["dbus-run-session", "--", "sh", "-c", UNLOCK, "sh", "sh", "-c", script],
        XDG_DATA_HOME=str(tool.home / "data"), XDG_RUNTIME_DIR=str(tool.home), CLIENT_SECRET=tool.client.secret,
    )  # fmt: skip
    out, err = process.communicate(timeout=60)
    check_nothing_secret(stage, tool.client, out + err)
    good = f"Logged in as {tool.client.client_id}; the token is good for 3600 s.\n0\n"
    assert out == f"{good}ink\npaper\n0\nink\npaper\n0\nLogged out.\n0\n1\n", err
    assert "not logged in" in err
    assert stage.answered.token_statuses == [200]
    assert tool.files == []
