"""Loads the settings from all sources and validates them as a whole, before anything starts.

The sources, highest precedence first: the environment, ``NAME_FILE`` (a file that holds the value of ``NAME``),
``.env`` in a checkout, ``config/$TOKENHOUSE_CONFIG.toml``, ``config/default.toml``. Validation of values is left to
``config.settings``.
"""

import difflib
import os
import tomllib
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from dotenv import dotenv_values
from pydantic import ValidationError

from app.config.private_files import find_changeable
from app.config.settings import CONFIG_PATTERN, EMPTY_MEANS_NONE, PREFIX, SECRET_FIELDS, SETTING_NAMES, Settings
from app.config.values import PROJECT_FOLDER
from app.errors import StartError

CONFIG_NAME = f"{PREFIX}CONFIG"

# Kubernetes injects these into every pod beside a service named "tokenhouse".
_INJECTED_BY_KUBERNETES = ("SERVICE_", "PORT")

# A name this close to a known one is a typing error. Any other belongs to somebody else, or to another version.
_TYPING_ERROR_SIMILARITY = 0.85

_MISSING = {
    "issuer": "is required outside development: the https URL under which callers reach this server",
    "secret_peppers": "is required: `make run` makes one for development; in production, set e.g. "
    'p1:$(python3 -c "import secrets; print(secrets.token_urlsafe(32))") and keep it safe',
}


class UnknownSettingWarning(UserWarning):
    """A ``TOKENHOUSE_`` variable that no setting reads."""


class DevelopmentWarning(UserWarning):
    """A production issuer with development settings."""


def load_settings(environment: Mapping[str, str] | None = None, *, folder: Path = PROJECT_FOLDER) -> Settings:
    """Load all sources and validate them as a whole.

    :param environment: replaces the process's environment.
    :param folder: the folder of ``.env`` and ``config/``.
    :raises StartError: one line per fault, with its name and what is allowed, never a secret's value.
    """
    layers = _Layers(folder)
    dotenv = layers.read_dotenv()
    environ = _given_environment(dotenv) if environment is None else dict(environment)
    from_environ = layers.read_variables(environ, "the environment")
    config = from_environ.get("config") or dotenv.get(CONFIG_NAME) or "production"
    if dotenv.get(CONFIG_NAME, config) != config:
        dotenv = {}
    values: dict[str, Any] = {
        "log_format": "console" if config == "development" else "json",
        **layers.read_toml("default"),
        **layers.read_toml(config),
        **layers.read_variables(dotenv, ".env"),
        **from_environ,
        "config": config,
    }
    is_for_others = str(from_environ.get("issuer")).startswith("https:")
    if config == "development" and "config" not in from_environ and is_for_others:
        message = (
            "TOKENHOUSE_ISSUER is that of a server for others, and .env, which the last `make run` left here, makes "
            "this development: for production set TOKENHOUSE_CONFIG=production"
        )
        warnings.warn(message, DevelopmentWarning, stacklevel=2)
    if config == "development" and "issuer" not in values:
        values["issuer"] = development_issuer(environ.get("HOST", ""), environ.get("PORT", ""))
    try:
        settings = Settings(**values)
    except ValidationError as error:
        layers.faults += _explain(error, silent=layers.faulty_fields)
    if layers.faults:
        raise StartError("\n".join(layers.faults)) from None
    return settings


def development_issuer(host: str, port: str) -> str:
    """Return the issuer of a server on a developer's machine, for the ``HOST`` and ``PORT`` of ``make run``."""
    if host in {"", "0.0.0.0", "::", "127.0.0.1"}:  # noqa: S104 - Compared, not bound.
        host = "localhost"
    address = f"[{host}]" if ":" in host else host
    return f"http://{address}" if port == "80" else f"http://{address}:{port or 8080}"


class _Layers:
    """Reads the sources and collects their faults, so that all are reported at once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.faults: list[str] = []
        self.faulty_fields: set[str] = set()

    def read_dotenv(self) -> dict[str, str]:
        try:
            values = dotenv_values(self._folder / ".env", interpolate=False)
        except UnicodeDecodeError:
            self.faults.append(".env cannot be read: it is not UTF-8 text")
            return {}
        if values:
            self._require_own(self._folder / ".env", [name.removeprefix(PREFIX).lower() for name in values])
        return {name: value for name, value in values.items() if value is not None}

    def read_toml(self, config: str) -> dict[str, Any]:
        if not CONFIG_PATTERN.fullmatch(config):
            self._refuse("config", f"{CONFIG_NAME} must be the name of a file in config/, of a-z, 0-9, _ and -")
            return {}
        path = self._folder / "config" / f"{config}.toml"
        try:
            values = tomllib.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            if config != "default":
                there = sorted(file.stem for file in path.parent.glob("*.toml") if "." not in file.stem)
                others = ", ".join(name for name in there if name != "default")
                self._refuse("config", f"{CONFIG_NAME} is {config}, but there are only: {others}")
            return {}
        except (OSError, ValueError) as error:
            self.faults.append(f"config/{path.name} cannot be read: {_cause(error)}")
            return {}
        # ``config`` chooses the file, so a file cannot set it.
        self._require_own(path, values)
        unknown = [name for name in values if name not in Settings.model_fields or name == "config"]
        self.faults += [f"config/{path.name} has an unknown setting {name!r}{_did_you_mean(name)}" for name in unknown]
        return {name: value for name, value in values.items() if name not in unknown}

    def read_variables(self, variables: Mapping[str, str], source: str) -> dict[str, str]:
        """Return ``TOKENHOUSE_X`` and ``TOKENHOUSE_X_FILE`` as ``x``; an empty variable is absent, with exceptions."""
        self._report_unknown_names(variables, source)
        given = {}
        for name in SETTING_NAMES:
            value, path = variables.get(name), variables.get(f"{name}_FILE")
            field = name.removeprefix(PREFIX).lower()
            if value and path:
                self._refuse(field, f"{name} and {name}_FILE are both set: set one of them")
            elif value and not is_text(value):
                self._refuse(field, f"{name} must be UTF-8 text")
            elif value or (value == "" and field in EMPTY_MEANS_NONE and not path):
                given[field] = value
            elif path and (content := self._read_value_file(field, name, path)):
                given[field] = content
        return given

    def _read_value_file(self, field: str, name: str, path: str) -> str | None:
        try:
            text = (self._folder / path).read_bytes().decode()
            self._require_own(self._folder / path, [field])
        except (OSError, ValueError) as error:
            shown = path if path.isprintable() else repr(path)
            self._refuse(field, f"{name}_FILE names {shown}, which cannot be read: {_cause(error)}")
            return None
        return text.removesuffix("\n").removesuffix("\r")

    def _require_own(self, path: Path, fields: Iterable[str]) -> None:
        """Refuse a file that sets a secret and that somebody else can change."""
        if SECRET_FIELDS.intersection(fields) and (fault := find_changeable(path)):
            self.faults.append(fault)

    def _refuse(self, field: str, fault: str) -> None:
        self.faults.append(fault)
        self.faulty_fields.add(field)

    def _report_unknown_names(self, variables: Mapping[str, str], source: str) -> None:
        """Report a fault for names that look like typing errors; warn about other unknown names."""
        for name in sorted(variables):
            setting = name.removeprefix(PREFIX)
            known = name.removesuffix("_FILE") in SETTING_NAMES
            if setting == name or setting.startswith(_INJECTED_BY_KUBERNETES) or known:
                continue
            if suggestion := _did_you_mean(setting.removesuffix("_FILE").lower()):
                self.faults.append(f"{name} in {source} is not a setting{suggestion}")
            else:
                message = f"{name} in {source} is not a setting and is ignored"
                warnings.warn(message, UnknownSettingWarning, stacklevel=4)


def _given_environment(dotenv: Mapping[str, str]) -> dict[str, str]:
    """Return the environment without the variables that the ``flask`` command copied into it from ``.env``.

    Flask copies them whichever configuration the file belongs to, and a production command must never mix in
    development's values. The kernel tells which variables the process was started with; where it does not, a value
    equal to the file's is taken for the file's.
    """
    if os.environ.get("FLASK_RUN_FROM_CLI") != "true":
        return dict(os.environ)
    try:
        entries = Path("/proc/self/environ").read_bytes().split(b"\0")
        started_with = {os.fsdecode(entry.partition(b"=")[0]) for entry in entries}
    except OSError:
        started_with = set()
    return {name: value for name, value in os.environ.items() if name in started_with or dotenv.get(name) != value}


def is_text(value: str) -> bool:
    """Return whether ``value`` is Unicode: environment bytes that are not UTF-8 become lone surrogates."""
    return not any("\ud800" <= character <= "\udfff" for character in value)


def _cause(error: OSError | ValueError) -> str:
    """Return what is wrong with a file, without quoting its content."""
    if isinstance(error, OSError):
        return error.strerror or type(error).__name__
    if isinstance(error, tomllib.TOMLDecodeError):
        return "it is not TOML" + str(error)[str(error).rfind(" (at ") :]
    return "it is not UTF-8 text" if isinstance(error, UnicodeDecodeError) else "it cannot be the name of a file"


def _did_you_mean(field: str) -> str:
    close = difflib.get_close_matches(field, Settings.model_fields, n=1, cutoff=_TYPING_ERROR_SIMILARITY)
    return f": did you mean {PREFIX}{close[0].upper()} (in TOML, {close[0]})?" if close else ""


def _explain(error: ValidationError, *, silent: set[str]) -> Iterator[str]:
    """Yield one line for each fault, except for fields in ``silent``, whose fault is reported already.

    The sentences are ours alone: pydantic's could quote the input.
    """
    for fault in error.errors(include_input=False, include_url=False):
        field = str(fault["loc"][0]) if fault["loc"] else ""
        is_missing = fault["type"] == "missing"
        # The default audience is missing only if the issuer is wrong or missing.
        if field in silent or (is_missing and field == "default_audience"):
            continue
        sentence = fault["msg"].removeprefix("Value error, ").replace("Input should be ", "must be ", 1)
        if is_missing:
            sentence = _MISSING[field]
        elif fault["type"].startswith("bool_"):
            sentence = "must be true or false"
        yield f"{PREFIX}{field.upper()} {sentence[0].lower()}{sentence[1:]}" if field else sentence
