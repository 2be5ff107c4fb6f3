"""The gunicorn worker of a Tokenhouse server: ``buffered_worker`` with our limits, errors and blocking sections."""

import json
import re
from collections.abc import Callable
from http import HTTPStatus
from typing import ClassVar

from app.blocking import on_blocking
from app.errors import BODY_LIMIT_BYTES, http_error_body
from buffered_worker.worker import BufferedWorker


class TokenhouseWorker(BufferedWorker):
    """JSON errors; health checks, the JWKS and the metadata are served whatever the database does."""

    SERVER = "tokenhouse"
    BODY_LIMIT_BYTES = BODY_LIMIT_BYTES
    NEVER_BLOCKS: ClassVar[re.Pattern[str]] = re.compile(r"(/livez|/\.well-known/[^?]*)$")

    @staticmethod
    def error_body(status: HTTPStatus) -> bytes:
        """Return the JSON body of an error below OAuth."""
        return json.dumps(http_error_body(status), separators=(",", ":")).encode()

    @staticmethod
    def on_blocking(before: Callable[[], None], after: Callable[[], None]) -> None:
        """Have the scheduler's hooks called around each ``with blocking:`` of the current thread."""
        on_blocking(before, after)
