"""How commands speak to people and to scripts."""

import io
import stat
import sys
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest

from app.cli.output import SecretFile, print_fields, print_json, print_table, read_secret, report, timestamp
from app.errors import ManagementError


def test_data_goes_to_standard_output_and_talk_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"name": "Größe"})
    report("said")
    written = capsys.readouterr()
    assert written.out == '{\n  "name": "Gr\\u00f6\\u00dfe"\n}\n'
    assert written.err == "said\n"


def test_a_table_in_a_pipe_is_tab_separated(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("a", "b"), [(1, None), ("[bold]x[/bold]", True)])
    assert capsys.readouterr().out == "a\tb\n1\t\n[bold]x[/bold]\tTrue\n"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_table_on_a_terminal_has_columns_and_no_markup(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setenv("COLUMNS", "80")
    print_table(("name", "state"), [("[bold]x[/bold]", "enabled"), ("[/]", None)])
    lines = [line.rstrip() for line in terminal.getvalue().splitlines()]
    assert len(lines) == 3
    assert lines[1].endswith("enabled")
    assert "[bold]x[/bold]" in lines[1]
    assert "[/]" in lines[2]


def test_fields_are_aligned_and_empty_ones_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    print_fields({"id": "a", "long_name": [1, 2], "map": {"k": "v", "l": ""}, "no": None, "un": "", "zero": 0, "e": []})
    assert capsys.readouterr().out == "id         a\nlong_name  1, 2\nmap        k=v, l=\nzero       0\n"
    print_fields({})
    assert capsys.readouterr().out == ""


def test_a_time_is_shown_to_the_second_in_utc() -> None:
    east = timezone(timedelta(hours=2))
    assert timestamp(datetime(2026, 1, 31, 14, 0, 59, 999_999, tzinfo=east)) == "2026-01-31T12:00:59Z"
    assert timestamp(datetime(2026, 1, 31, tzinfo=UTC)) == "2026-01-31T00:00:00Z"
    assert timestamp(None) is None


def test_a_secret_is_read_as_it_is_but_for_one_newline(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    for content, secret in [(b"a b\n", "a b"), (b"a\r\n", "a"), (b"\n\n", "\n"), (b"", ""), ("é".encode(), "é")]:
        file.write_bytes(content)
        assert read_secret(str(file)) == secret


def test_a_secret_file_is_made_before_there_is_a_secret(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    file = SecretFile(str(path))
    assert path.read_text() == ""
    assert stat.S_IMODE(path.stat().st_mode) & 0o177 == 0
    file.write("hidden")
    assert path.read_text() == "hidden\n"
    with pytest.raises(ManagementError, match="exists, and a secret is never written over another file"):
        SecretFile(str(path))
    path.unlink()
    file = SecretFile(str(path))
    file.discard()
    assert not path.exists()


HOSTILE = "\x1b]0;owned\x07\r\n\t\u202e"


def test_no_name_or_value_controls_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    print_fields({f"name{HOSTILE}": f"value{HOSTILE}", "list": [HOSTILE], "map": {HOSTILE: HOSTILE}})
    print_table(("a", "b"), [(HOSTILE, "x"), ("y", f"z{HOSTILE}")])
    said = capsys.readouterr().out
    assert all(character.isprintable() or character in "\n\t" for character in said)
    assert "\t" not in said.partition("a\tb")[0]
    # A cell is one cell, and a row is one line.
    assert [line.count("\t") for line in said.partition("a\tb\n")[2].splitlines()] == [1, 1]
