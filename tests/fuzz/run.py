"""Let Atheris, a coverage-guided fuzzer, call the targets: ``python tests/fuzz/run.py [--seconds N] [TARGET [FILE…]]``.

Each target runs in a separate process for its share of the time. The inputs that reached new code are kept in
``build/fuzz`` for the next run, and so is an input that breaks a rule: give its file name to run it again.
"""

import argparse
import contextlib
import io
import subprocess
import sys
from pathlib import Path

PROJECT = Path(__file__).parents[2]
FOLDER = PROJECT / "build" / "fuzz"
LONGEST_INPUT_BYTES = 2048
TARGETS = ("framing", "form", "forwarded", "jws", "proof", "certificate")


def main() -> int:
    """Run every target, or the one that is named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=600, help="for all targets together")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("target", nargs="?", choices=TARGETS)
    parser.add_argument("files", nargs="*", help="inputs to run once")
    arguments = parser.parse_args()
    if arguments.inside:
        fuzz(arguments.target, arguments.seconds, arguments.files)
    chosen = [arguments.target] if arguments.target else TARGETS
    share = max(1, arguments.seconds // len(chosen))
    for target in chosen:
        print(f"{target}: {share} s", flush=True)
        command = [sys.executable, __file__, "--inside", "--seconds", str(share), target, *arguments.files]
        if code := subprocess.run(command, check=False).returncode:
            print(f"{target}: failed; input that breaks a rule is in {FOLDER}", file=sys.stderr)
            return code
    return 0


def fuzz(name: str, seconds: int, files: list[str]) -> None:
    """Fuzz one target in this process, which ends here."""
    import atheris  # noqa: PLC0415 - Only where there is a wheel.

    sys.path[:0] = [str(PROJECT), str(PROJECT / "tests")]
    # Atheris names every module there.
    with contextlib.redirect_stderr(io.StringIO()), atheris.instrument_imports(include=["app", "buffered_worker"]):
        from fuzz.targets import TARGETS as TARGETS_BY_NAME  # noqa: PLC0415 - Imported while Atheris watches.
    target = TARGETS_BY_NAME[name]
    corpus = FOLDER / name
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(target.seeds):
        (corpus / f"seed-{number}").write_bytes(seed)
    options = [
        f"-max_total_time={seconds}",
        f"-max_len={LONGEST_INPUT_BYTES}",
        f"-artifact_prefix={FOLDER}/{name}-",
        "-verbosity=0",
        "-print_final_stats=1",
    ]
    with target.open() as check:
        atheris.Setup([name, *options, *(files or [str(corpus)])], check)
        atheris.Fuzz()


if __name__ == "__main__":
    sys.exit(main())
