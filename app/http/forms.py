"""Strict form parsing: one complete form, each parameter once (RFC 6749 section 3.2).

A truncated body could ask for a smaller scope, and of two values each reader could take another one. What the
parameters mean is left to ``oauth``.
"""

from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import parse_qsl

from werkzeug.exceptions import BadRequest
from werkzeug.http import parse_options_header
from werkzeug.wsgi import get_content_length, get_input_stream

from app.errors import BODY_LIMIT_BYTES, BodyTooLarge, InvalidRequest
from app.reasons import RefusalReason

FORM = "application/x-www-form-urlencoded"
RESOURCE = "resource"
AUDIENCE = "audience"
REPEATABLE = frozenset({RESOURCE, AUDIENCE})
"""The parameters that may occur several times: RFC 8707 section 2, RFC 8693 section 2.1."""

# More than any request has, and few enough to make parsing cheap.
_PARAMETERS_MAX = 100


def read_form(environ: dict[str, Any], known: set[str]) -> list[tuple[str, str]]:
    """Parse the body of a request.

    :param known: the parameters that an error may name.
    :returns: names and values in order, without empty values.
    :raises InvalidRequest: the body is not one complete form with each parameter once.
    """
    _require_form(environ)
    pairs = parse_form(_read_whole_body(environ))
    _refuse_repeated_parameters(pairs, known)
    return pairs


def require_parameter(parameters: Mapping[str, str], name: str) -> str:
    """Return the value of the parameter ``name``.

    :raises InvalidRequest: the parameter is missing.
    """
    if name not in parameters:
        raise InvalidRequest(RefusalReason.MISSING_PARAMETER, f"The parameter {name} is missing.")
    return parameters[name]


def _require_form(environ: Mapping[str, Any]) -> None:
    content_type = environ.get("CONTENT_TYPE", "")
    is_form = content_type == FORM or parse_options_header(content_type)[0].lower() == FORM
    if not is_form or environ.get("HTTP_CONTENT_ENCODING", "identity").lower() != "identity":
        raise InvalidRequest(RefusalReason.NOT_A_FORM, f"The content type must be {FORM}.")


def _read_whole_body(environ: dict[str, Any]) -> bytes:
    """Read the body, if it is complete and within the limit."""
    declared = get_content_length(environ)
    if declared is not None and declared > BODY_LIMIT_BYTES:
        raise BodyTooLarge
    try:
        is_cut_already = "wsgi.input_terminated" in environ
        stream = environ["wsgi.input"] if is_cut_already else get_input_stream(environ)
        body: bytes = stream.read(BODY_LIMIT_BYTES + 1)
    except (BadRequest, OSError):
        raise InvalidRequest(RefusalReason.INCOMPLETE_BODY, "The request body is incomplete.") from None
    if len(body) > BODY_LIMIT_BYTES:
        raise BodyTooLarge
    if declared is not None and len(body) != declared:
        raise InvalidRequest(RefusalReason.INCOMPLETE_BODY, "The request body is incomplete.")
    return body


def parse_form(body: bytes) -> list[tuple[str, str]]:
    """Decode a form. An empty parameter counts as absent (section 3.2)."""
    try:
        # With blank values: their names must be UTF-8 too.
        pairs = parse_qsl(body.decode(), keep_blank_values=True, errors="strict", max_num_fields=_PARAMETERS_MAX)
    except ValueError:
        raise InvalidRequest(RefusalReason.MALFORMED_FORM, "The body must be a form in UTF-8.") from None
    return [(name, value) for name, value in pairs if value]


def _refuse_repeated_parameters(pairs: Sequence[tuple[str, str]], known: set[str]) -> None:
    """Refuse repeated parameters (section 3.2). The error names only known ones."""
    if len({name for name, _ in pairs}) == len(pairs):
        return
    seen: set[str] = set()
    for name, _ in pairs:
        if name in seen and name not in REPEATABLE:
            message = f"The parameter {name} is repeated." if name in known else "A parameter is repeated."
            raise InvalidRequest(RefusalReason.REPEATED_PARAMETER, message)
        seen.add(name)


def read_authorization(environ: Mapping[str, Any]) -> str | None:
    """Return the ``Authorization`` header.

    Servers join repeated headers with a comma, which valid Basic credentials never contain.
    """
    value: str = environ.get("HTTP_AUTHORIZATION", "").strip(" \t")
    if value.lower().startswith("basic") and "," in value:
        raise InvalidRequest(
            RefusalReason.REPEATED_AUTHORIZATION, "The request must authenticate the client exactly once."
        )
    return value or None
