"""One complete form, each parameter once: RFC 6749 section 3.2. What its parameters mean is left to ``server``.

A cut body would be a smaller scope, and of two values each reader would take another one.
"""

from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import unquote

from werkzeug.exceptions import BadRequest
from werkzeug.http import parse_options_header
from werkzeug.wsgi import get_content_length, get_input_stream

from app.errors import BODY_LIMIT_BYTES, BodyTooLarge, InvalidRequest

FORM = "application/x-www-form-urlencoded"
REPEATABLE = "resource"
"""The one parameter that may stand in a request several times: RFC 8707 section 2."""

# Far more than any request has, and few enough to make parsing cheap.
_PARAMETERS_MAX = 100


def read_form(environ: dict[str, Any], known: set[str]) -> list[tuple[str, str]]:
    """Names and values, in order, without those that are empty.

    :param known: the parameters that an answer may name.
    :raises InvalidRequest: it is not one complete form with each parameter once.
    """
    _require_form(environ)
    pairs = parse_form(_read_whole_body(environ))
    _refuse_repeated_parameters(pairs, known)
    return pairs


def require_parameter(parameters: Mapping[str, str], name: str) -> str:
    """The value of the parameter ``name``.

    :raises InvalidRequest: there is none.
    """
    if name not in parameters:
        raise InvalidRequest("missing_parameter", f"The parameter {name} is missing.")
    return parameters[name]


def _require_form(environ: Mapping[str, Any]) -> None:
    content_type = environ.get("CONTENT_TYPE", "")
    is_form = content_type == FORM or parse_options_header(content_type)[0].lower() == FORM
    if not is_form or environ.get("HTTP_CONTENT_ENCODING", "identity").lower() != "identity":
        raise InvalidRequest("not_a_form", f"The content type must be {FORM}.")


def _read_whole_body(environ: dict[str, Any]) -> bytes:
    """Read the body once it is known to be complete and not too long: a cut one would be a smaller scope."""
    declared = get_content_length(environ)
    if declared is not None and declared > BODY_LIMIT_BYTES:
        raise BodyTooLarge
    try:
        is_cut_already = "wsgi.input_terminated" in environ
        stream = environ["wsgi.input"] if is_cut_already else get_input_stream(environ)
        body: bytes = stream.read(BODY_LIMIT_BYTES + 1)
    except (BadRequest, OSError):
        raise InvalidRequest("incomplete_body", "The request body is incomplete.") from None
    if len(body) > BODY_LIMIT_BYTES:
        raise BodyTooLarge
    if declared is not None and len(body) != declared:
        raise InvalidRequest("incomplete_body", "The request body is incomplete.")
    return body


def parse_form(body: bytes) -> list[tuple[str, str]]:
    """Decode the form; an empty parameter is an absent one (section 3.2)."""
    try:
        parts = body.decode().replace("+", " ").split("&", _PARAMETERS_MAX)
        if len(parts) > _PARAMETERS_MAX:
            raise ValueError("too many parameters")  # noqa: TRY301 - As what cannot be decoded is.
        # What parse_qsl does, in a third of its time; a test holds the two together.
        pairs = [(_decoded(name), _decoded(value)) for name, _, value in map(_at_equals, parts)]
    except ValueError:
        raise InvalidRequest("malformed_form", "The body must be a form in UTF-8.") from None
    return [(name, value) for name, value in pairs if value]


def _at_equals(part: str) -> tuple[str, str, str]:
    return part.partition("=")


def _decoded(text: str) -> str:
    return unquote(text, errors="strict") if "%" in text else text


def _refuse_repeated_parameters(pairs: Sequence[tuple[str, str]], known: set[str]) -> None:
    """Refuse what stands twice (section 3.2); only a known name comes back in the answer."""
    if len({name for name, _ in pairs}) == len(pairs):
        return
    seen: set[str] = set()
    for name, _ in pairs:
        if name in seen and name != REPEATABLE:
            message = f"The parameter {name} is repeated." if name in known else "A parameter is repeated."
            raise InvalidRequest("repeated_parameter", message)
        seen.add(name)


def read_authorization(environ: Mapping[str, Any]) -> str | None:
    """The header's value. Servers join repeated headers with a comma, which stands in no valid Basic credentials."""
    value: str = environ.get("HTTP_AUTHORIZATION", "").strip(" \t")
    if value.lower().startswith("basic") and "," in value:
        raise InvalidRequest("repeated_authorization", "The request must authenticate the client exactly once.")
    return value or None
