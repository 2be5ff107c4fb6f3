"""The nightly job among the examples: it outlives its tokens, and goes on where it was when it is started again."""

import signal
import subprocess
from pathlib import Path

import pytest
from examples.stage import BROKEN, TOO_MANY, UNAVAILABLE, Stage
from support.server import NewClient, wait_until

from examples.programs import PROGRAMS, PYTHON, check_nothing_secret, read_counts


class Night:
    """One list of items, and what the job says of it."""

    def __init__(self, stage: Stage, folder: Path, count: int, **client_fields: int) -> None:
        self.stage = stage
        self.items, self.done, self.metrics = folder / "items", folder / "done", folder / "nightly.prom"
        self.ids = [f"item {number}/ä" for number in range(count)]
        self.items.write_text("".join(f"{item}\n" for item in self.ids))
        self.client: NewClient = stage.client(**client_fields)
        self.prefix: list[str] = []

    def start(self, *options: str, **more: str) -> subprocess.Popen[str]:
        command = [
            *self.prefix,
            str(PYTHON),
            "nightly.py",
            str(self.items),
            str(self.done),
            "--metrics",
            str(self.metrics),
            *options,
        ]
        environment = self.stage.environment(self.client, LOG_LEVEL="DEBUG", PYTHONDONTWRITEBYTECODE="1", **more)
        return subprocess.Popen(
            command, env=environment, cwd=PROGRAMS, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def end(self, process: subprocess.Popen[str]) -> tuple[int, str]:
        out, said = process.communicate(timeout=120)
        check_nothing_secret(self.stage, self.client, out + said)
        assert out == ""
        return process.returncode, said

    def run(self, *options: str, **more: str) -> tuple[int, str]:
        return self.end(self.start(*options, **more))

    def counted(self) -> dict[str, float]:
        return read_counts(self.metrics.read_text())

    def through(self) -> list[str]:
        return sorted(self.done.read_text().splitlines()) if self.done.exists() else []


@pytest.fixture
def night(stage: Stage, tmp_path: Path) -> Night:
    return Night(stage, tmp_path, 200)


def test_all_items_are_put_once_with_one_token(night: Night) -> None:
    status, said = night.run("--threads", "200")
    assert (status, said.splitlines()[-1].split(" ", 3)[3]) == (0, "left=0 failed=0")
    assert len(night.stage.answered.put) == 200
    assert sorted(night.stage.answered.put) == night.through() == sorted(night.ids)
    assert night.stage.answered.token_statuses == [200]
    assert night.counted() == {"token ok": 1, "api ok": 200}
    metrics = night.metrics.read_text()
    assert 'nightly_items_total{outcome="done"} 200.0' in metrics
    assert float(metrics.split("nightly_last_success_timestamp_seconds ")[-1].split()[0]) > 1e9
    assert night.run()[0] == 0, "the second time there is nothing to do"
    assert len(night.stage.answered.put) == 200


def test_it_outlives_its_tokens(stage: Stage, tmp_path: Path) -> None:
    night = Night(stage, tmp_path, 120, access_token_lifetime=4)
    stage.answered.api_pause = 0.25
    assert night.run("--threads", "4")[0] == 0
    assert len(stage.answered.token_statuses) in {3, 4, 5}
    assert (set(stage.answered.token_statuses), set(stage.answered.api_statuses)) == ({200}, {200})
    assert stage.answered.unverifiable == []


def test_faults_on_the_way_cost_no_item(night: Night) -> None:
    answered = night.stage.answered
    answered.token_faults.extend([(503, {"Retry-After": "1"}, UNAVAILABLE), (429, {}, TOO_MANY), (BROKEN, {}, {})])
    answered.api_faults.extend([401, 503, 429, 500])
    assert night.run()[0] == 0
    assert sorted(answered.put) == sorted(night.ids)
    assert answered.token_statuses.count(200) == 2, "one at the start, one after the 401"
    assert night.counted() == {"token ok": 2, "api ok": 200}


def test_killed_and_started_again_it_goes_on(night: Night) -> None:
    night.stage.answered.api_pause = 0.05
    for number in (signal.SIGKILL, signal.SIGTERM):
        before = len(night.through())
        process = night.start()
        # What the job has noted: the API has seen more, which the threads have in hand.
        wait_until(lambda before=before: len(night.through()) >= before + 40)
        process.send_signal(number)
        status, said = night.end(process)
        assert status == (-9 if number == signal.SIGKILL else 75), said
        assert before + 40 <= len(night.through()) < 200
    # As when it is killed, or the disk is full, in the middle of a note.
    with night.done.open("a") as done:
        done.write("item 19")
    assert night.run()[0] == 0
    assert night.through() == sorted(night.ids)
    twice = len(night.stage.answered.put) - 200
    assert 0 <= twice <= 8, "at most what the threads had in hand at the kill"
    assert set(night.stage.answered.put) == set(night.ids)


def test_two_at_once_do_not_share_a_list(night: Night) -> None:
    night.stage.answered.api_pause = 0.05
    first = night.start()
    wait_until(lambda: len(night.stage.answered.put) > 0)
    status, said = night.run()
    assert (status, said.count("another run is at work")) == (75, 1)
    assert night.end(first)[0] == 0
    assert len(night.stage.answered.put) == 200


def test_an_item_that_the_api_refuses_is_told_and_left_for_the_next_night(night: Night) -> None:
    night.stage.answered.api_faults.extend([404])
    status, said = night.run("--threads", "1")
    assert (status, said.count("item='item 0/ä' answered=404"), said.count("left=1 failed=1")) == (1, 1, 1)
    assert night.counted() == {"token ok": 1, "api ok": 199, "api 404": 1}
    assert night.run()[0] == 0
    assert night.through() == sorted(night.ids)


@pytest.mark.parametrize(
    ("code", "changes"),
    [
        ("invalid_client", {"CLIENT_ID": "nobody"}),
        ("invalid_scope", {"SCOPE": "things:write"}),
        ("server_error", {}),
        ("unreachable", {"TOKEN_URL": "http://127.0.0.1:1/oauth/token"}),
    ],
)
def test_without_a_token_it_ends_at_once_and_says_what_to_do(night: Night, code: str, changes: dict[str, str]) -> None:
    if code == "server_error":
        night.stage.answered.token_faults.extend([(503, {"Retry-After": "0"}, UNAVAILABLE)] * 500)
    status, said = night.run("--threads", "1", **changes)
    assert (status, said.count(f"{code}: "), said.count("left=200 failed=0")) == (1, 1, 1)
    assert night.counted() == {f"token {code}": 1, "api no_token": 1}
    assert code != "invalid_scope" or "things:write" in said
    assert "nightly_last_success_timestamp_seconds 0.0" in night.metrics.read_text()


def test_a_file_that_cannot_grow_ends_it_without_a_lost_item(night: Night) -> None:
    night.ids = [f"{number:0200}" for number in range(200)]
    night.items.write_text("".join(f"{item}\n" for item in night.ids))
    night.prefix = ["sh", "-c", 'ulimit -f 32 && exec "$@"', "sh"]
    status, said = night.run("--threads", "1")
    assert (status, said.count("File too large")) == (1, 1)
    assert night.done.stat().st_size == 32 * 512
    assert len(night.stage.answered.put) == 83
    night.prefix = []
    assert night.run()[0] == 0
    assert len(night.stage.answered.put) == 202
    assert night.through() == sorted(night.ids)


def test_the_last_item_counts_without_its_line_break(night: Night) -> None:
    night.items.write_text(night.items.read_text().removesuffix("\n"))
    assert night.run()[0] == 0
    assert night.through() == sorted(night.ids)


def test_a_list_in_another_encoding_is_told_and_nothing_is_put(night: Night) -> None:
    night.items.write_bytes("ä\n".encode("latin-1"))
    status, said = night.run()
    assert (status, said.splitlines()[-1]) == (2, f"nightly.py: error: {night.items} is not in UTF-8")
    assert night.stage.answered.api_statuses == []


def test_what_is_not_set_is_named(night: Night) -> None:
    status, said = night.run(API_URL="")
    assert (status, said.splitlines()[-1]) == (2, "nightly.py: error: API_URL must be set")


def test_what_is_not_there_is_told(night: Night) -> None:
    night.items.unlink()
    status, said = night.run()
    assert (status, said.splitlines()[-1]) == (
        2,
        f"nightly.py: error: {night.items} is no file",
    )
