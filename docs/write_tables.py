"""Write the tables of the documents that come from the code, between their markers: ``make tables``."""

import sys
from collections.abc import Iterable
from pathlib import Path

from app.reasons import RefusalReason, TokenReason

DOCS = Path(__file__).resolve().parent
TABLES = {"audit-log.md": RefusalReason, "tokens.md": TokenReason}
BEGIN, END = "<!-- begin reasons: written by `make tables` -->\n", "<!-- end reasons -->\n"


def table(reasons: Iterable[RefusalReason | TokenReason]) -> str:
    """Return a row for each reason."""
    rows = ["| `reason` | meaning | fix |", "|---|---|---|"]
    for reason in reasons:
        code = f"{reason}…" if reason.endswith("_") else reason
        rows.append(f"| `{code}` | {_for_any_client(reason.meaning)} | {_for_any_client(reason.fix)} |")
    return "\n".join(rows) + "\n"


def _for_any_client(sentence: str) -> str:
    return (
        sentence.replace("Client {client}", "The client").replace("client {client}", "the client").format(client="ID")
    )


def updated(document: str, text: str) -> str:
    """Return the text of a document with the table that it should have."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}{table(TABLES[document])}{END}{after}"


if __name__ == "__main__":
    sys.path.insert(0, str(DOCS.parent))
    for name in TABLES:
        (DOCS / name).write_text(updated(name, (DOCS / name).read_text()))
