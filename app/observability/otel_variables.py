"""Checks OpenTelemetry's own variables before it reads them: it would log the values of malformed ones. Pure.

OpenTelemetry reads all other variables as it documents.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import unquote, urlsplit

from app.errors import StartError

_NEEDED = ("opentelemetry.sdk.trace", "opentelemetry.exporter.otlp.proto.http")
"""What the extra ``otel`` installs. Other libraries install the API alone."""

_OTLP = ("OTEL_EXPORTER_OTLP_", "OTEL_EXPORTER_OTLP_TRACES_")
"""Prefixes of the variables of all signals, and of traces."""
_URL = re.compile(
    r"https?://(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,62})(?:\.[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,62}))*)"
    r"(?::(?P<port>[0-9]{1,5}))?(?:/(?:[A-Za-z0-9._~!$&'()*+,;=:@-]|%[0-9A-Fa-f]{2})*)*"
)
_PORTS = range(1, 65536)
_SAMPLERS = ("always_on", "always_off", "traceidratio")
_HEADER = re.compile(r"[ \t]*[!#$%&'*+.^_`|~0-9A-Za-z-]+[ \t]*=[ !#-+\--:<-\[\]-~\t]*")
_HEADER_VALUE = re.compile(r"[\t -~]*")
_COUNT = re.compile(r"0*[1-9][0-9]{0,8}")
_BATCH, _QUEUE = "OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "OTEL_BSP_MAX_QUEUE_SIZE"
_BATCH_DEFAULT, _QUEUE_DEFAULT = 512, 2048

_Check = Callable[[str], bool]


def is_enabled(traces: bool | None, environ: Mapping[str, str]) -> bool:  # noqa: FBT001 - A setting.
    """Return whether requests are traced.

    :param traces: our own setting; ``None``: if a variable names a collector.
    """
    if environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return False
    return any(environ.get(f"{start}ENDPOINT") for start in _OTLP) if traces is None else traces


def reads_parents(environ: Mapping[str, str]) -> bool:
    """Return whether ``traceparent`` of a request is used."""
    names = environ.get("OTEL_PROPAGATORS") or "tracecontext"
    return "tracecontext" in [name.strip().lower() for name in names.split(",")]


def check(environ: Mapping[str, str]) -> None:
    """Check that spans can be created and sent.

    :raises StartError: one line per fault, without values.
    """
    if faults := list(find_faults(environ)):
        raise StartError("\n".join(faults))


def find_faults(environ: Mapping[str, str]) -> Iterator[str]:
    """Yield one line for each missing or wrong variable."""
    if not _is_installed():
        yield "traces need OpenTelemetry, which is not installed: pip install '.[otel]'"
    for name, is_good, rule in _RULES:
        if (value := environ.get(name)) and not is_good(value):
            yield f"{name} {rule}"
    batch, queue = environ.get(_BATCH) or _BATCH_DEFAULT, environ.get(_QUEUE) or _QUEUE_DEFAULT
    if _is_count(str(batch)) and _is_count(str(queue)) and int(batch) > int(queue):
        yield f"{_BATCH} must be at most {_QUEUE} ({_QUEUE_DEFAULT} unless set)"


def _is_installed() -> bool:
    try:
        return all(find_spec(name) for name in _NEEDED)
    except ModuleNotFoundError:
        return False


def _is_plain_url(value: str) -> bool:
    found = _URL.fullmatch(value)
    if found is None or int(found["port"] or 1) not in _PORTS:
        return False
    try:
        # An IPv6 address may still be malformed.
        return bool(urlsplit(value).hostname)
    except ValueError:
        return False


def _is_headers(value: str) -> bool:
    pairs = [pair for pair in re.split(r"[ \t]*,[ \t]*", value) if pair]
    return all(_HEADER.fullmatch(pair) and _HEADER_VALUE.fullmatch(unquote(pair)) for pair in pairs)


def _is_count(value: str) -> bool:
    return _COUNT.fullmatch(value) is not None


def _is_seconds(value: str) -> bool:
    return re.fullmatch(r"[0-9]{1,6}(?:\.[0-9]{1,6})?", value) is not None and float(value) > 0


def _is_share(value: str) -> bool:
    return re.fullmatch(r"0|1|[01]?\.[0-9]{1,18}", value) is not None and float(value) <= 1


def _is_readable(value: str) -> bool:
    try:
        with Path(value).open("rb"):
            return True
    except (OSError, ValueError):
        return False


def _is_one_of(*names: str) -> _Check:
    return lambda value: value.strip().lower() in names


_OF_EXPORTER: tuple[tuple[str, _Check, str], ...] = (
    (
        "ENDPOINT",
        _is_plain_url,
        "must be an http or https URL without user, query and fragment: keys go into OTEL_EXPORTER_OTLP_HEADERS",
    ),
    (
        "HEADERS",
        _is_headers,
        "must be comma-separated name=value pairs, with %XX for commas, semicolons and what is not ASCII",
    ),
    ("PROTOCOL", _is_one_of("http/protobuf"), "must be http/protobuf, which is what the extra otel sends"),
    ("COMPRESSION", _is_one_of("none", "gzip", "deflate"), "must be none, gzip or deflate"),
    ("TIMEOUT", _is_seconds, "must be seconds, more than 0"),
    *(
        (name, _is_readable, "must be a file that can be read")
        for name in ("CERTIFICATE", "CLIENT_CERTIFICATE", "CLIENT_KEY")
    ),
)

_RULES: tuple[tuple[str, _Check, str], ...] = (
    *((f"{start}{name}", is_good, rule) for name, is_good, rule in _OF_EXPORTER for start in _OTLP),
    ("OTEL_TRACES_EXPORTER", _is_one_of("otlp"), "must be otlp; TOKENHOUSE_TRACES=false sends none"),
    (
        "OTEL_TRACES_SAMPLER",
        _is_one_of(*_SAMPLERS, *(f"parentbased_{name}" for name in _SAMPLERS)),
        f"must be {', '.join(_SAMPLERS)}, or one of them behind parentbased_",
    ),
    ("OTEL_TRACES_SAMPLER_ARG", _is_share, "must be a share from 0 to 1, such as 0.05"),
    *(
        (name, _is_count, "must be a whole number, 1 or more")
        for name in ("OTEL_BSP_SCHEDULE_DELAY", "OTEL_BSP_EXPORT_TIMEOUT", _BATCH, _QUEUE)
    ),
)
