"""logrotate moves the files away while everything runs: every line is in one of them, once."""

import json
import os
import shutil
import signal
import subprocess
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from support.server import RunningServer, wait_until

LOGROTATE = shutil.which("logrotate", path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
MANY = 400
ROTATIONS = 3


@pytest.mark.skipif(LOGROTATE is None, reason="logrotate is not installed")
def test_no_line_is_lost_or_told_twice_when_logs_rotate(tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    logs.mkdir(mode=0o700)
    configuration = tmp_path / "logrotate.conf"
    configuration.write_text(f"{logs}/*.log {{\n rotate 9\n nocreate\n missingok\n}}\n")
    configuration.chmod(0o644)
    server = RunningServer(tmp_path)
    server.prepare()
    client = server.create_client()
    server.start(log_folder=logs)
    try:
        with ThreadPoolExecutor(4) as pool:
            asked = []
            for rotation in range(1, ROTATIONS + 1):
                asked += [pool.submit(server.post_token, headers={"Authorization": client.basic}) for _ in range(MANY)]
                rotate(configuration)
                if rotation == ROTATIONS:
                    # A worker that is born later, of a master that has written nothing since.
                    os.kill(min(server.workers()), signal.SIGKILL)
                wait_until((logs / "stdout.log").exists)
            answers = [future.exception() or future.result() for future in asked]
    finally:
        server.stop()
    issued = [str(one.headers["X-Request-ID"]) for one in answers if getattr(one, "status_code", 0) == 200]
    assert len(issued) > MANY * (ROTATIONS - 1)
    files = sorted(logs.glob("stdout.log*"))
    assert [file.name for file in files] == ["stdout.log", *(f"stdout.log.{n}" for n in range(1, ROTATIONS + 1))]
    events = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    told = Counter(event["request_id"] for event in events if event["event"] == "TokenIssued")
    assert {told[request_id] for request_id in issued} == {1}
    # Standard error is the master's too, and it says its last word in the newest file.
    assert "Shutting down" in (logs / "stderr.log").read_text()


def test_the_new_master_of_an_upgrade_writes_where_logs_go_now(tmp_path: Path) -> None:
    server = RunningServer(tmp_path)
    server.prepare()
    server.start()
    try:
        for path in (server.stdout_path, server.stderr_path):
            path.rename(path.with_suffix(".1"))
        server.process.send_signal(signal.SIGUSR2)
        wait_until(lambda: server.stderr_path.exists() and "Tokenhouse is " in server.stderr_path.read_text())
    finally:
        server.stop()


def rotate(configuration: Path) -> None:
    assert LOGROTATE
    state = configuration.with_suffix(".state")
    subprocess.run([LOGROTATE, "--force", "--state", state, configuration], check=True, capture_output=True)
