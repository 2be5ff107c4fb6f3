"""Every example does, against a real server, what its README and docs/calling.md say."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fasteners
import pytest
from examples.stage import BROKEN, EXAMPLES, LOST, TOO_MANY, UNAVAILABLE, Stage

from examples.programs import install_node

DEBIANS_GO = Path("/usr/share/gocode")
DEBIANS_CRATES = Path("/usr/share/cargo/registry")

CALLERS = {
    "python requests": ([sys.executable, "python/with_requests.py"], "python"),
    "python httpx": ([sys.executable, "python/with_httpx.py"], "python"),
    "python private key": ([sys.executable, "python/with_private_key.py"], "python"),
    "node private key": (["node", "node/with_private_key.mjs"], "node"),
    "node fetch": (["node", "node/with_fetch.mjs"], "node"),
    "node openid-client": (["node", "node/with_openid_client.mjs"], "node"),
    "java": (["java", "java/Calls.java"], "java"),
    "go": (["go"], "go"),
    "go x/oauth2": (["go", "-tags", "xoauth2"], "go"),
    "rust reqwest": (["cargo"], "cargo"),
    "rust oauth2": (["cargo", "--features", "oauth2"], "cargo"),
}
"""Programs that make ``CALLS`` calls at once, ``ROUNDS`` times, and the tool that each needs."""

ERRORS = {
    "invalid_client": {"CLIENT_ID": "nobody"},
    "invalid_scope": {"SCOPE": "things:write"},
}


@pytest.fixture(params=CALLERS)
def caller(
    request: pytest.FixtureRequest, tmp_path: Path, stage: Stage, build: Callable[[str, tuple[str, ...]], str]
) -> list[str]:
    command, tool = CALLERS[request.param]
    stage.keyed = request.param.endswith("private key")
    if tool != "python" and shutil.which(tool) is None:
        pytest.skip(f"{tool} is not installed")
    if tool == "node":
        return ["node", str(install_node("node", tmp_path).parent / command[1])]
    if tool == "go":
        if "xoauth2" in command and not (DEBIANS_GO / "src" / "golang.org" / "x" / "oauth2").is_dir():
            pytest.skip("golang.org/x/oauth2 is not installed: golang-golang-x-oauth2-dev has it")
        return [build("go", tuple(command[1:]))]
    if tool == "cargo":
        for crate in ("reqwest", *(["oauth2"] if "oauth2" in command else [])):
            if not list(DEBIANS_CRATES.glob(f"{crate}-[0-9]*")):
                pytest.skip(f"the crate {crate} is not installed: librust-{crate}-dev has it")
        return [build("rust", tuple(command[1:]))]
    return command


@pytest.fixture
def build(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, tuple[str, ...]], str]:
    """Build a program once for all test processes, with the libraries of Debian's packages; where it lies."""
    base = tmp_path_factory.getbasetemp()
    folder = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    def build_once(language: str, options: tuple[str, ...]) -> str:
        home = folder / language
        program = home / "-".join(["calls", *options])
        with fasteners.InterProcessLock(f"{home}.lock"):
            if not program.exists():
                shutil.copytree(EXAMPLES / language, home, dirs_exist_ok=True)
                (build_go if language == "go" else build_rust)(home, program, options)
        return str(program)

    return build_once


def build_go(home: Path, program: Path, options: tuple[str, ...]) -> None:
    environment = os.environ | {"GO111MODULE": "off", "GOPATH": str(DEBIANS_GO), "GOCACHE": str(home / "cache")}
    command = ["go", "build", "-o", str(program), *options, "."]
    subprocess.run(command, cwd=home, env=environment, check=True, timeout=300)


def build_rust(home: Path, program: Path, options: tuple[str, ...]) -> None:
    settings = ['source.crates-io.replace-with="debian"', f'source.debian.directory="{DEBIANS_CRATES}"']
    settings.append("profile.dev.debug=0")
    told = [part for setting in settings for part in ("--config", setting)]
    environment = os.environ | {"CARGO_TARGET_DIR": str(home / "target")}
    subprocess.run(["cargo", "build", "--quiet", "--offline", *told, *options], cwd=home, env=environment, check=True,
                   timeout=500)  # fmt: skip
    shutil.copy(home / "target" / "debug" / "calls", program)


def test_one_call(stage: Stage, caller: list[str]) -> None:
    done = stage.run(caller, stage.client())
    assert (done.returncode, done.stdout, done.stderr) == (0, "round 1: 1 calls, 1 answered 200\n", "")
    assert (stage.answered.token_statuses, stage.answered.api_statuses) == ([200], [200])


def test_two_hundred_callers_make_one_token_request(stage: Stage, caller: list[str]) -> None:
    done = stage.run(caller, stage.client(), CALLS="200", ROUNDS="2", PAUSE_SECONDS="0")
    expected = "round 1: 200 calls, 200 answered 200\nround 2: 200 calls, 200 answered 200\n"
    assert (done.returncode, done.stdout, done.stderr) == (0, expected, "")
    assert stage.answered.token_statuses == [200]
    assert len(stage.answered.api_statuses) == 400


def test_a_token_that_ends_meanwhile_is_replaced_before_it_does(stage: Stage, caller: list[str]) -> None:
    client = stage.client(access_token_lifetime=4)
    done = stage.run(caller, client, CALLS="20", ROUNDS="4", PAUSE_SECONDS="2.1")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1] == "round 4: 20 calls, 20 answered 200"
    assert stage.answered.token_statuses == [200] * 4
    assert (set(stage.answered.api_statuses), stage.answered.unverifiable) == ({200}, [])


def test_after_401_there_is_one_fresh_token_for_all(stage: Stage, caller: list[str]) -> None:
    stage.answered.api_faults.append(401)
    done = stage.run(caller, stage.client(), CALLS="20", ROUNDS="2", PAUSE_SECONDS="0")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "round 1: 20 calls, 20 answered 200\nround 2: 20 calls, 20 answered 200\n"
    assert stage.answered.token_statuses == [200, 200]


def test_an_api_that_never_takes_the_token_is_asked_twice(stage: Stage, caller: list[str]) -> None:
    stage.answered.api_faults.extend([401, 401])
    done = stage.run(caller, stage.client())
    assert done.stdout == "round 1: 1 calls, 1 answered 401\n"
    assert (stage.answered.token_statuses, stage.answered.api_statuses) == ([200, 200], [401, 401])


def test_a_token_server_that_is_away_is_asked_again_when_it_says(stage: Stage, caller: list[str]) -> None:
    stage.answered.token_faults.extend(
        [(503, {"Retry-After": "1"}, UNAVAILABLE), (429, {"Retry-After": "2"}, TOO_MANY)]
    )
    began = time.monotonic()
    done = stage.run(caller, stage.client(), CALLS="5")
    assert (done.returncode, done.stdout, done.stderr) == (0, "round 1: 5 calls, 5 answered 200\n", "")
    assert stage.answered.token_statuses == [503, 429, 200]
    assert time.monotonic() - began >= 3


def test_a_connection_that_breaks_is_made_again(stage: Stage, caller: list[str]) -> None:
    stage.answered.token_faults.extend([(BROKEN, {}, {})] * 2)
    done = stage.run(caller, stage.client())
    assert (done.returncode, done.stdout, done.stderr) == (0, "round 1: 1 calls, 1 answered 200\n", "")
    assert stage.answered.token_statuses[-1] == 200
    assert len(stage.answered.token_statuses) >= 3


def test_an_answer_that_is_lost_is_asked_for_again_in_new_words(stage: Stage, caller: list[str]) -> None:
    stage.answered.token_faults.append((LOST, {}, {}))
    done = stage.run(caller, stage.client())
    assert (done.returncode, done.stdout, done.stderr) == (0, "round 1: 1 calls, 1 answered 200\n", "")
    assert stage.answered.token_statuses[-1] == 200


def test_a_token_server_that_stays_away_is_given_up(stage: Stage, caller: list[str]) -> None:
    stage.answered.token_faults.extend([(503, {"Retry-After": "0"}, UNAVAILABLE)] * 20)
    done = stage.run(caller, stage.client())
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("server_error: ")
    assert done.stderr.count("\n") == 1
    assert stage.answered.token_statuses == [503] * 5


@pytest.mark.parametrize("code", ERRORS)
def test_a_refusal_says_what_to_do_and_is_not_repeated(stage: Stage, caller: list[str], code: str) -> None:
    done = stage.run(caller, stage.client(), **ERRORS[code])
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"{code}: ")
    assert done.stderr.count("\n") == 1
    assert code != "invalid_scope" or "things:write" in done.stderr
    assert len(stage.answered.token_statuses) == 1


def test_a_secret_that_was_rotated_is_taken_without_a_restart(stage: Stage, caller: list[str]) -> None:
    client = stage.client(access_token_lifetime=2)
    environment = stage.environment(client, ROUNDS="2", PAUSE_SECONDS="3")
    process = subprocess.Popen(
        caller, env=environment, cwd=EXAMPLES, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout
    assert process.stdout.readline() == "round 1: 1 calls, 1 answered 200\n"
    stage.rotate(client)
    assert process.communicate(timeout=30) == ("round 2: 1 calls, 1 answered 200\n", "")
    assert stage.answered.token_statuses == [200, 200]


# The shells'


@pytest.fixture(params=["curl/token.sh", "curl/token-without-jq.sh"])
def printer(request: pytest.FixtureRequest) -> list[str]:
    if request.param == "curl/token.sh" and shutil.which("jq") is None:
        pytest.skip("jq is not installed")
    return [f"./{request.param}"]


def test_curl_prints_a_token(stage: Stage, printer: list[str]) -> None:
    done = stage.run(printer, stage.client())
    assert (done.returncode, done.stderr) == (0, "")
    assert stage.server.verify(done.stdout.strip())["scope"] == "things:read"


def test_curl_asks_again_when_the_server_says_or_the_connection_breaks(stage: Stage, printer: list[str]) -> None:
    stage.answered.token_faults.append((503, {"Retry-After": "1"}, UNAVAILABLE))
    stage.answered.token_faults.append((BROKEN, {}, {}))
    done = stage.run(printer, stage.client(), SCOPE="things:read")
    assert done.returncode == 0
    assert stage.answered.token_statuses == [503, BROKEN, 200]


@pytest.mark.parametrize("code", ERRORS)
def test_curl_tells_a_refusal(stage: Stage, printer: list[str], code: str) -> None:
    done = stage.run(printer, stage.client(), **ERRORS[code])
    assert (done.returncode, done.stdout) == (1, "")
    assert code in done.stderr


@pytest.mark.parametrize("program", ["curl/token.sh", "curl/token-without-jq.sh", "shell/call.sh"])
@pytest.mark.parametrize("missing", ["TOKEN_URL", "CLIENT_ID", "CLIENT_SECRET_FILE"])
def test_shells_say_what_is_not_set(stage: Stage, program: str, missing: str) -> None:
    environment = stage.environment(stage.client())
    del environment[missing]
    done = subprocess.run([EXAMPLES / program], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode != 0, done.stdout) == (True, "")
    assert missing in done.stderr


CALL = ["./shell/call.sh"]
GOOD = '{"status": 200, "things": ["ink", "paper"]}\n'


def cached(stage: Stage, client_id: str) -> Path:
    return stage.folder / "cache" / "tokens" / client_id


def test_the_shell_keeps_its_token_in_a_file_of_its_own(stage: Stage) -> None:
    client = stage.client()
    for _ in range(3):
        done = stage.run(CALL, client)
        assert (done.returncode, done.stdout, done.stderr) == (0, GOOD, "")
    assert stage.answered.token_statuses == [200]
    assert cached(stage, client.client_id).stat().st_mode & 0o777 == 0o600


def test_many_shells_at_once_fetch_one_token(stage: Stage) -> None:
    client = stage.client()
    with ThreadPoolExecutor(20) as pool:
        done = list(pool.map(lambda _: stage.run(CALL, client), range(20)))
    assert {(one.stdout, one.stderr) for one in done} == {(GOOD, "")}
    assert stage.answered.token_statuses == [200]


def test_the_shell_replaces_a_token_that_ends_or_is_refused(stage: Stage) -> None:
    client = stage.client(access_token_lifetime=2)
    assert stage.run(CALL, client).stdout == GOOD
    time.sleep(1.1)
    assert stage.run(CALL, client).stdout == GOOD
    assert stage.answered.token_statuses == [200, 200]
    stage.answered.api_faults.append(401)
    assert stage.run(CALL, stage.client()).stdout == GOOD
    assert stage.answered.token_statuses == [200] * 4
    stage.answered.api_faults.extend([401, 401])
    done = stage.run(CALL, stage.client())
    assert (done.returncode, done.stderr) == (1, "the API answered 401\n")


@pytest.mark.parametrize("content", ["", "x", "9999999999", "9999999999 no-token", "\0\0"])
def test_a_file_that_is_broken_costs_one_request(stage: Stage, content: str) -> None:
    client = stage.client()
    cached(stage, client.client_id).parent.mkdir(parents=True, exist_ok=True)
    cached(stage, client.client_id).write_text(content)
    done = stage.run(CALL, client)
    assert (done.returncode, done.stdout) == (0, GOOD)
    assert stage.answered.token_statuses == [200]


def test_a_shell_that_is_killed_leaves_nothing_half_done(stage: Stage) -> None:
    client = stage.client()
    stage.answered.token_faults.append((503, {"Retry-After": "30"}, UNAVAILABLE))
    process = subprocess.Popen(CALL, env=stage.environment(client), cwd=EXAMPLES, start_new_session=True)
    while not stage.answered.token_statuses:
        time.sleep(0.01)
    os.killpg(process.pid, 9)
    process.wait()
    assert stage.run(CALL, client).stdout == GOOD
    assert not list(cached(stage, client.client_id).parent.glob(f"{client.client_id}.[0-9]*"))
