"""How commands print: data on stdout, messages on stderr, one line and a non-zero status on failure."""

import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from datetime import datetime, timedelta
from itertools import chain, islice
from pathlib import Path
from typing import Any

import click
from flask.cli import AppGroup
from sqlalchemy.exc import SQLAlchemyError

from app.config.values import format_time, parse_duration
from app.database.engine import explain
from app.errors import ManagementError, ServiceUnavailable, StartError

IDS = {"client_id", "kid", "id", "secret_id"}
"""Columns that people copy from."""

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, for scripts.")


KID_FIRST = {"ignore_unknown_options": True}
"""For commands with a kid as argument: one in 64 thumbprints begins with a hyphen."""


class _OneLineErrors(click.Command):
    """Prints expected errors as one line on standard error."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except (ManagementError, StartError) as error:
            click.ClickException(str(error)).show()
            return ctx.exit(getattr(error, "exit_status", 1))
        except (SQLAlchemyError, ServiceUnavailable) as error:
            raise click.ClickException(explain(error)) from None


class CommandGroup(_OneLineErrors, AppGroup):
    """A group of commands: a noun with its verbs."""


class SingleCommand(_OneLineErrors):
    """A command without a group."""


def shown(value: object) -> str:
    """Format as JSON unless it is printable text: nothing may control the terminal."""
    is_plain = isinstance(value, str) and value.isprintable()
    return str(value) if is_plain else json.dumps(value)


def report(message: str) -> None:
    """Print a message on standard error. A closed stream is ignored."""
    with suppress(OSError):
        click.echo(message, err=True)


def print_line(line: str, *, newline: bool = True) -> None:
    """Print a line of data on standard output.

    :raises ManagementError: it cannot be written: the disk is full, or the reader has gone.
    """
    try:
        click.echo(line, nl=newline)
    except OSError as error:
        # The rest of the buffer would fail again at the end of the process.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise ManagementError(f"standard output cannot be written: {error.strerror}") from None


def print_json(data: object) -> None:
    """Print data for a script."""
    print_line(json.dumps(data, indent=2))


def print_json_list(items: Iterable[object]) -> None:
    """Print a list for a script, item by item, with the output of :func:`print_json`."""
    begun = False
    for item in items:
        text = json.dumps(item, indent=2).replace("\n", "\n  ")
        print_line(f"{',' if begun else '['}\n  {text}", newline=False)
        begun = True
    print_line("\n]" if begun else "[]")


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, pages: bool = False) -> None:
    """Print rows: a table on a terminal, tab-separated lines in a pipe. Cells are escaped as by :func:`shown`.

    :param pages: whether a long table is shown in a pager.
    """
    lines = (["" if value is None else shown(str(value)) for value in row] for row in rows)
    if sys.stdout.isatty():
        cells = list(lines)
        from rich.console import Console  # noqa: PLC0415 - A tenth of a second that scripts need not wait for.
        from rich.table import Table  # noqa: PLC0415

        table = Table(box=None, pad_edge=False)
        for number, column in enumerate(columns):
            # A truncated id could not be copied; other columns wrap.
            longest = max((len(row[number]) for row in cells), default=0) if column in IDS else 0
            table.add_column(column, overflow="fold", no_wrap=column in IDS, min_width=longest or None)
        for row in cells:
            table.add_row(*row)
        console = Console(markup=False, highlight=False)
        with console.pager() if pages and len(cells) >= console.height else nullcontext():
            console.print(table, crop=False, width=max(console.width, console.measure(table).minimum))
        return
    # Read the first row before printing anything: if that fails, nothing is printed.
    first = list(islice(lines, 1))
    for line in chain([list(columns)], first, lines):
        print_line("\t".join(line))


def print_fields(fields: Mapping[str, object]) -> None:
    """Print the fields of one thing, a line each, without empty and false ones.

    Names and values are escaped as by :func:`shown`.

    All in one write: a reader that leaves after a few lines has received everything, a new secret included.
    """
    named = {
        shown(name): value for name, value in fields.items() if value not in (None, "", [], {}) and value is not False
    }
    width = max(map(len, named), default=0)
    if named:
        print_line("\n".join(f"{name:<{width}}  {shown(_plain(value))}" for name, value in named.items()))


def timestamp(time: datetime | None) -> str | None:
    """Format ``time`` as RFC 3339 in UTC, to the second."""
    return format_time(time) if time else None


def read_secret(source: str, what: str = "secret file") -> str:
    """Read a secret from a file, or from standard input (``-``); one trailing newline is not part of it.

    :raises ManagementError: it cannot be read. Never quotes it.
    """
    try:
        return read_bytes(source, what).decode().removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError:
        raise ManagementError(f"the {what} {source} cannot be read: it is not UTF-8 text") from None


def read_bytes(source: str, what: str) -> bytes:
    """Read a file, or standard input (``-``).

    :raises ManagementError: it cannot be read.
    """
    try:
        return sys.stdin.buffer.read() if source == "-" else Path(source).read_bytes()
    except OSError as error:
        raise ManagementError(f"the {what} {source} cannot be read: {error.strerror}") from None


class SecretFile:
    """A new file for one secret, readable by its owner only. Created before the secret, so that no secret is lost."""

    def __init__(self, path: str) -> None:
        self._path = Path(path)
        try:
            self._descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW, 0o600)
        except FileExistsError:
            raise ManagementError(f"{path} exists, and a secret is never written over another file") from None
        except OSError as error:
            raise ManagementError(f"{path} cannot be written: {error.strerror}") from None

    def write(self, secret: str) -> None:
        """Write ``secret`` to the disk and close the file.

        :raises ManagementError: the disk is full.
        """
        try:
            with os.fdopen(self._descriptor, "w") as file:
                file.write(f"{secret}\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise ManagementError(f"{self._path} cannot be written: {error.strerror}. Nothing was changed") from None

    def discard(self) -> None:
        """Delete the file: no secret was created."""
        with suppress(OSError):
            os.close(self._descriptor)
        self._path.unlink(missing_ok=True)


@contextmanager
def secret_file_for(path: str | None) -> Iterator[SecretFile | None]:
    """Create the file of ``--secret-out`` before the secret; delete it if no secret is created."""
    file = SecretFile(path) if path else None
    try:
        yield file
    except BaseException:
        if file:
            file.discard()
        raise


class Duration(click.ParamType[int]):
    """``90s``, ``15m``, ``24h``, ``7d``, ``1y``: whole seconds."""

    name = "duration"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Parse, or fail with what is allowed."""
        try:
            return parse_duration(value)
        except ValueError as error:
            return self.fail(str(error), param, ctx)


def seconds(duration: int | None) -> timedelta | None:
    """Convert the result of :class:`Duration` to a ``timedelta``."""
    return None if duration is None else timedelta(seconds=duration)


def _plain(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key}={text}" for key, text in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
