"""The ring stays whole when its writer is killed, the disk is full, the folder is closed, or two write at once."""

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest
from support.keys import generate_long_ago
from support.server import Installation

from app.config.values import PROJECT_FOLDER
from app.keyring.model import Ring

WRITER = Path(__file__).resolve().parent.parent / "support" / "faulty_writer.py"
MOST_STEPS = 60


class Faulty:
    """An installation whose next writer meets a fault."""

    def __init__(self, folder: Path) -> None:
        self.installation = Installation(folder)
        self.ring_path = folder / "keyring.toml"
        self.folder = folder
        generate_long_ago(self.installation.services.keys.manager)

    @property
    def environment(self) -> dict[str, str]:
        return {**self.installation.environment, "PYTHONPATH": str(PROJECT_FOLDER)}

    def write(self, fault: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, str(WRITER), fault],
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    @contextmanager
    def killed(self) -> Iterator[Callable[[int], int]]:
        """A writer for each step at which it is killed; its exit status."""
        with subprocess.Popen(
            [sys.executable, str(WRITER), "die-at"],
            env=self.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as writers:
            stdin, stdout = writers.stdin, writers.stdout
            assert stdin
            assert stdout

            def write(step: int) -> int:
                print(step, file=stdin, flush=True)
                return int(stdout.readline())

            yield write

    def read(self) -> Ring:
        """As a process that has not read it before."""
        return self.installation.services.keys.open_backend(self.ring_path).read()

    def files(self) -> set[str]:
        return {path.name for path in self.folder.iterdir()}


@pytest.fixture
def faulty(tmp_path: Path) -> Iterator[Faulty]:
    folder = tmp_path / "keys"
    folder.mkdir()
    yield Faulty(folder)
    folder.chmod(0o700)


def test_a_writer_that_is_killed_at_any_step_leaves_the_old_ring_or_the_new_one(faulty: Faulty) -> None:
    changed, at_first = [], {path: path.read_bytes() for path in faulty.folder.iterdir()}
    with faulty.killed() as write:
        for step in range(1, MOST_STEPS):
            # From the same ring each time, beside what those before have left half-way.
            for path, content in at_first.items():
                path.write_bytes(content)
            before = faulty.read()
            status = write(step)
            after = faulty.read()
            assert set(before.keys) <= set(after.keys)
            changed.append(len(after.keys) - len(before.keys))
            if status == 0:
                break
            assert status == -signal.SIGKILL
    assert status == 0
    # Nothing is changed up to one step, and from there on all is: what is left to do then is to sweep.
    assert set(changed) == {0, 1}
    assert changed == sorted(changed)
    assert len(changed) > 8
    # The last writer, which was not killed, has removed what the others left half-way.
    assert not [name for name in faulty.files() if name.endswith(".new")]
    assert all((faulty.folder / name).stat().st_mode & 0o077 == 0 for name in faulty.files())


def test_a_full_disk_changes_nothing_and_is_told(faulty: Faulty) -> None:
    before, files = faulty.ring_path.read_bytes(), faulty.files()
    done = faulty.write("tiny-disk")
    assert done.stdout == (
        f"refused: the key ring {faulty.ring_path} cannot be written, and is as it was: File too large\n"
    ), done.stderr
    assert faulty.ring_path.read_bytes() == before
    assert faulty.files() == files


def test_a_folder_that_may_not_be_written_changes_nothing_and_is_told(faulty: Faulty) -> None:
    before = faulty.ring_path.read_bytes()
    done = faulty.write("not-allowed")
    assert done.stdout == (
        f"refused: the key ring {faulty.ring_path} cannot be written, and is as it was: Permission denied\n"
    ), done.stderr
    assert faulty.ring_path.read_bytes() == before


def test_of_two_rotations_at_the_same_moment_one_is_told_that_it_was_done(faulty: Faulty) -> None:
    with ThreadPoolExecutor(2) as pool:
        one, other = pool.map(lambda _: faulty.installation.flask("keys", "rotate"), range(2))
    assert sorted((one.returncode, other.returncode)) == [0, 1]
    refused = one if one.returncode else other
    assert refused.stderr.endswith("sooner is not safe: nothing was changed\n")
    assert len(faulty.read().keys) == 3


def test_a_clock_that_was_set_back_is_told_by_the_command(faulty: Faulty) -> None:
    """The ring was written an hour from now."""
    generate_long_ago(faulty.installation.services.keys.manager, ago=timedelta(hours=-1))
    before = faulty.ring_path.read_bytes()
    done = faulty.installation.flask("keys", "rotate")
    assert (done.returncode, done.stdout) == (1, "")
    assert "one of the two is wrong. Set the clock right; nothing was changed" in done.stderr
    assert faulty.ring_path.read_bytes() == before
