"""``flask explain`` finds the line of a request in what people have at hand, and has words for every reason."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from unit.harness import Harness

from app.reasons import RefusalReason, TokenReason

ID = "0123456789abcdef0123456789abcdef"
REFUSED = {
    "time": "2026-01-31T12:00:00.000Z",
    "event": "TokenRefused",
    "request_id": ID,
    "client_id": "billing",
    "error": "invalid_client",
    "status": 401,
    "reason": "expired_secret",
    "outcome": "refused",
}
MEND = "Fix: `flask clients rotate-secret billing` creates another one.\n"


def log(*lines: str | dict[str, Any]) -> bytes:
    others = [json.dumps(REFUSED | {"request_id": "another"}), "not JSON", "", '{"half": ', "[1]", '"text"', "{}"]
    return "".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in [*others, *lines]).encode()


@pytest.mark.parametrize(
    "line",
    [
        json.dumps(REFUSED),
        json.dumps(REFUSED, indent=None, separators=(",", ":")),
        f"2026-01-31T12:00:00Z tokens-0 tokenhouse: {json.dumps(REFUSED)}",
        json.dumps({"log": json.dumps(REFUSED) + "\n", "stream": "stdout", "time": "x"}),
        json.dumps({"MESSAGE": json.dumps(REFUSED), "_PID": "1"}),
        f"prefix {json.dumps({'message': json.dumps({'log': json.dumps(REFUSED)})})}",
    ],
)
def test_a_line_is_found_however_it_was_wrapped(harness: Harness, line: str, tmp_path: Path) -> None:
    done = harness.run("explain", ID, stdin=log(line))
    assert (done.exit_code, done.stderr) == (0, f"The secret of client billing is right, but has expired.\n{MEND}")
    assert re.search(r"^reason +expired_secret$", done.stdout, re.MULTILINE)
    (tmp_path / "log").write_bytes(log(line))
    assert harness.run("explain", ID, str(tmp_path / "log")).stderr == done.stderr
    (found,) = json.loads(harness.run("explain", ID, "--json", stdin=log(line)).stdout)
    assert found["line"] == REFUSED
    assert f"Fix: {found['mend']}\n" == MEND


def test_a_line_of_the_console_is_found_too(harness: Harness) -> None:
    line = (
        f"2026-01-31T12:00:00.000Z TokenRefused client_id=billing duration_ms=0.9 error=invalid_scope outcome=refused "
        f"reason=scope_not_granted request_id={ID} status=400 detail='The client was not granted: a b'"
    )
    done = harness.run("explain", ID, stdin=log(line))
    assert done.exit_code == 0
    assert done.stderr.startswith("Client billing requested scopes that it was not granted.\n")
    assert re.search(r"^detail +The client was not granted: a b$", done.stdout, re.MULTILINE)


def test_what_was_refused_before_an_endpoint_is_found_in_the_diagnostics(harness: Harness) -> None:
    line = {
        "time": "x",
        "event": f"Refused with 405: Method Not Allowed from 192.0.2.1, request_id={ID}",
        "level": "info",
    }
    done = harness.run("explain", ID, stdin=log(line))
    assert done.exit_code == 0
    assert "Refused with 405" in done.stdout


def test_what_went_well_is_said_to_have(harness: Harness) -> None:
    line = {"event": "TokenIssued", "request_id": ID, "client_id": "billing", "scope": "a b", "audience": ["urn:a"]}
    done = harness.run("explain", ID, stdin=log(line))
    assert done.stderr == "Client billing got a token: nothing is wrong with this request.\n"


def test_nothing_that_is_found_is_said_to_be(harness: Harness, tmp_path: Path) -> None:
    for stdin in (b"", log(), b"\xff\xfe\n", log(f"a line of text about {ID}")):
        done = harness.run("explain", ID, stdin=stdin)
        assert (done.exit_code, done.stdout) == (1, "")
        assert done.stderr.startswith(f"Error: no line of the log is about request {ID}.")
    done = harness.run("explain", ID, str(tmp_path / "nowhere"))
    assert done.stderr == f"Error: the log {tmp_path}/nowhere cannot be read: No such file or directory\n"


def test_a_log_steers_no_terminal(harness: Harness) -> None:
    done = harness.run("explain", ID, stdin=log(REFUSED | {"client_id": "\x1b[2J", "error": "\x1b]0;x"}))
    assert "\x1b" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("reason", "shown"),
    [
        ("of_a_later_version", "of_a_later_version"),
        ("{secret} {0} {", "{secret} {0} {"),
        ("\x1b[2J", '"\\u001b[2J"'),
    ],
    ids=["plain", "braces", "escape"],
)
def test_a_reason_that_is_not_known_is_named(harness: Harness, reason: str, shown: str) -> None:
    done = harness.run("explain", ID, stdin=log(REFUSED | {"reason": reason}))
    assert done.exit_code == 0
    assert done.stderr == f"This version does not know the reason {shown}.\n"


@pytest.mark.parametrize("reason", ["database_OperationalError", "unexpected_ValueError"])
def test_a_reason_may_end_in_a_class(harness: Harness, reason: str) -> None:
    meaning = RefusalReason(reason.partition("_")[0] + "_").meaning
    assert harness.run("explain", ID, stdin=log(REFUSED | {"reason": reason})).stderr.startswith(meaning)


@pytest.mark.parametrize("reason", RefusalReason)
def test_each_reason_of_a_refusal_has_its_sentences(harness: Harness, reason: RefusalReason) -> None:
    code = reason.caused_by("ValueError") if reason.endswith("_") else reason.value
    done = harness.run("explain", ID, stdin=log(REFUSED | {"reason": code}))
    assert done.stderr == f"{reason.meaning}\nFix: {reason.fix}\n".replace("{client}", "billing")


@pytest.mark.parametrize("reason", TokenReason)
@pytest.mark.parametrize("event", ["TokenIntrospected", "TokenRevoked"])
def test_each_reason_about_a_token_has_its_sentences(harness: Harness, event: str, reason: TokenReason) -> None:
    done = harness.run("explain", ID, stdin=log(REFUSED | {"event": event, "reason": reason.value}))
    fix = f"Fix: {reason.fix}\n" if reason.fix else ""
    assert done.stderr == f"{reason.meaning}\n{fix}".replace("{client}", "billing")
