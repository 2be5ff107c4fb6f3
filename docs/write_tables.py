"""Write the lists of reasons in the documents from the code, between their markers: ``make tables``."""

import re
import textwrap
from collections.abc import Iterable
from pathlib import Path

from app.reasons import RefusalReason, TokenReason

DOCS = Path(__file__).resolve().parent
LISTS = {"audit-log.md": RefusalReason, "tokens.md": TokenReason}
BEGIN, END = "<!-- begin reasons: written by `make tables` -->\n", "<!-- end reasons -->\n"
COLUMNS = 100


def reasons(members: Iterable[RefusalReason | TokenReason]) -> str:
    """Return an item for each reason: its code, what it means, and how to fix it."""
    items = []
    for reason in members:
        code = f"{reason}…" if reason.endswith("_") else reason
        fix = f" *Fix:* {_for_any_client(reason.fix)}" if reason.fix else ""
        item = f"- `{code}`: {_for_any_client(reason.meaning)}{fix}"
        # A command stays on one line.
        whole = re.sub("`[^`]*`", lambda code: code[0].replace(" ", "\0"), item)
        lines = textwrap.fill(whole, COLUMNS, subsequent_indent="  ", break_on_hyphens=False, break_long_words=False)
        items.append(lines.replace("\0", " "))
    return "\n".join(items) + "\n"


def _for_any_client(sentence: str) -> str:
    return (
        sentence.replace("Client {client}", "The client").replace("client {client}", "the client").format(client="ID")
    )


def updated(document: str, text: str) -> str:
    """Return the text of a document with the list that it should have."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}{reasons(LISTS[document])}{END}{after}"


if __name__ == "__main__":
    for name in LISTS:
        (DOCS / name).write_text(updated(name, (DOCS / name).read_text()))
