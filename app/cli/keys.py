"""``flask keys``: the command line of ``app.keyring.service``. Which changes are safe is left to ``rotation_plan``."""

import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import click
from sqlalchemy.exc import SQLAlchemyError

from app.audit.events import KeyRingChanged
from app.audit.outbox import system_user
from app.cli.output import KID_FIRST, CommandGroup, json_option, print_json, print_line, print_table, report, timestamp
from app.cli.timeline import draw_svg, draw_text
from app.config.values import DAY, YEAR, format_duration, parse_keyring
from app.crypto.algorithms import ALGORITHMS, RSA_BITS, size_in_bits
from app.errors import ManagementError, StartError
from app.keyring.backends.base import KeyringBackend
from app.keyring.backends.file import FileKeyring
from app.keyring.model import RETIRE_AFTER, KeyState, Ring, SigningKey
from app.keyring.rotation_plan import find
from app.keyring.serialization import public_pem
from app.keyring.service import rules_for
from app.keyring.usage_counters import KeyUsage
from app.keyring.validation import find_problems, find_unsafe_changes, find_warnings
from app.services import Services, services


class Moment(click.ParamType[datetime]):
    """A date and time with a zone: RFC 3339."""

    name = "time"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        """Parse, or fail with what is allowed."""
        try:
            moment = value if isinstance(value, datetime) else datetime.fromisoformat(str(value))
        except ValueError:
            moment = datetime.min  # noqa: DTZ901 - It has no zone, and is refused for that.
        if moment.tzinfo is None:
            self.fail("must be a date and time with a zone, such as 2026-01-31T12:00:00Z", param, ctx)
        return moment


@click.group("keys", cls=CommandGroup)
def keys() -> None:
    """Create, rotate, revoke, check and list signing keys."""


@keys.command("list")
@json_option
def list_keys(*, as_json: bool) -> None:
    """List all keys, with their states and times."""
    here = services()
    ring = None if here.keys.manager.backend.is_empty() else here.keys.manager.backend.read()
    uses = _uses_where_known(here)
    rows = [_describe(ring, key, here.clock()) | _describe_use(uses, key) for key in ring.keys] if ring else []
    if as_json:
        print_json(rows)
        return
    columns = ("kid", "alg", "state", "since", "until", "next", "tokens_signed", "last_signed_at")
    print_table(columns, ([row[name] for name in columns] for row in rows))


@keys.command("generate")
@click.option("--alg", type=click.Choice(list(ALGORITHMS)), help="Default: TOKENHOUSE_SIGNING_ALG.")
@click.option("--bits", type=click.Choice([str(bits) for bits in RSA_BITS]), help="Size of an RSA key. Default: 2048.")
@click.option("--if-none", is_flag=True, help="Only when there is no key yet: for jobs that run several times.")
@json_option
def generate_key(alg: str | None, bits: str | None, *, if_none: bool, as_json: bool) -> None:
    """Create a key. The first signs at once and gets a standby; a further one waits until every verifier knows it."""
    here = services()
    before = _kids(here)
    made = here.keys.manager.generate(alg, int(bits) if bits else None, if_none=if_none)
    if made is None:
        report("There is a key already: nothing was changed.")
        if as_json:
            print_json(None)
        return
    ring, key = made
    _leave_trace(here, "generated", [other.kid for other in ring.keys if other.kid not in before])
    _report_start(here, key)
    if as_json:
        print_json(_describe(ring, key, here.clock()))
    _report_warnings(here, ring)


@keys.command("rotate")
@click.option("--if-due", is_flag=True, help="Only when the signing key is old, or no standby is announced: for cron.")
@click.option("--alg", type=click.Choice(list(ALGORITHMS)), help="Rotate the keys of this algorithm, for APIs.")
@click.option("--at", type=Moment(), help="When it begins to sign, such as 2026-01-31T12:00:00Z.")
@click.option("--unsafe", is_flag=True, help="Even if some verifiers do not know it yet and reject its tokens.")
@click.option("--yes", is_flag=True, help="With --unsafe, do not ask.")
@json_option
def rotate_keys(  # noqa: PLR0913 - One for each option.
    *, if_due: bool, alg: str | None, at: datetime | None, unsafe: bool, yes: bool, as_json: bool
) -> None:
    """Let the standby sign as early as is safe, and announce the next one."""
    if if_due and (at or unsafe):
        raise ManagementError("--if-due does what is due and safe: it goes with neither --at nor --unsafe")
    here = services()
    if unsafe and (until := here.keys.manager.unknown_until(at, alg)):
        harm = (
            f"until {timestamp(until)} a verifier may have a JWKS without the key that signs, and refuse its tokens, "
            "which are all fresh ones"
        )
        _ask(harm, yes=yes)
    rotated = _rotate_what_is_due(here, alg) if if_due else {alg: here.keys.manager.rotate(at, unsafe=unsafe, alg=alg)}
    now = here.clock()
    if not rotated:
        # Cron mails every output.
        if as_json:
            print_json(_describe_all(here.keys.manager.backend.read(), now))
        return
    for of_alg, ring in rotated.items():
        if standbys := ring.standbys(now, of_alg):
            report(f"{standbys[0].kid} signs from {timestamp(standbys[0].signs_from)} on.")
            _leave_trace(here, "rotated", [standby.kid for standby in standbys])
    if as_json:
        print_json(_describe_all(ring, now))
    else:
        print_line(draw_text(ring, now, now + timedelta(seconds=YEAR)))
    _report_warnings(here, ring)


def _rotate_what_is_due(here: Services, alg: str | None) -> dict[str | None, Ring]:
    """Rotate what is due; return the ring after each rotation by algorithm, where ``None`` is that of the settings."""
    rings = {alg: here.keys.manager.rotate_if_due(alg)}
    if alg is None:
        usable = {key.alg for key in here.keys.manager.backend.read().usable(here.clock())}
        if others := usable - {here.settings.signing_alg}:
            rings |= {one: here.keys.manager.rotate_if_due(one) for one in sorted(others & set(_algs_of_apis(here)))}
    return {each: ring for each, ring in rings.items() if ring}


def _algs_of_apis(here: Services) -> Sequence[str]:
    """Return the algorithms that APIs need besides the server's own; none if the APIs cannot be read."""
    try:
        return here.apis.repository.signing_algs()
    except SQLAlchemyError:
        return ()
    finally:
        here.clients.repository.end_reading()


@keys.command("revoke", context_settings=KID_FIRST)
@click.argument("kid")
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
def revoke_key(kid: str, *, yes: bool, as_json: bool) -> None:
    """Revoke a key, in an emergency. The standby signs at once; live tokens of the key become invalid."""
    here = services()
    now = here.clock()
    ring = here.keys.manager.backend.read()
    key = find(ring, kid)
    if ring.state_of(key, now) is KeyState.REVOKED:
        report(f"{kid} was revoked at {timestamp(key.revoked_at)} already.")
    else:
        harm = _harm_of_revoking(ring, key, now, _longest_token(here))
        _ask(f"revoking {kid} cannot be undone and {harm}", yes=yes)
        alg = key.alg if key.alg in _algs_of_apis(here) else None
        ring = here.keys.manager.revoke(kid, alg)
        _leave_trace(here, "revoked", [kid])
        _tell_revocation(here, ring, kid, harm, alg)
    if as_json:
        print_json(_describe_all(ring, here.clock()))


@keys.command("prune")
@json_option
def prune_keys(*, as_json: bool) -> None:
    """Delete keys that have been gone or revoked for 30 days, with their files. Every change does so too."""
    here = services()
    removed = here.keys.manager.prune()
    if removed:
        _leave_trace(here, "pruned", removed)
    if as_json:
        print_json(list(removed))
    for kid in removed:
        report(f"{kid} was removed.")
    if not removed:
        report("No key has been gone or revoked for 30 days.")


@keys.command("retire")
@click.argument("alg", type=click.Choice(list(ALGORITHMS)))
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
def retire_algorithm(alg: str, *, yes: bool, as_json: bool) -> None:
    """Give up an algorithm that no longer signs: its keys leave the JWKS when no token of them can be alive."""
    here = services()
    if alg in _algs_of_apis(here):
        raise ManagementError(f"{alg} signs the tokens of an API: `flask apis update API --signing-alg` changes that")
    question = f"every server must run with TOKENHOUSE_SIGNING_ALG={here.settings.signing_alg} before {alg} is retired"
    if not yes:
        if not sys.stdin.isatty():
            raise ManagementError(f"{question}: say --yes when it is so")
        click.confirm(f"{question.capitalize()}. Is it so?", abort=True, err=True)
    ring = here.keys.manager.retire(alg)
    _leave_trace(here, "retired", [key.kid for key in ring.keys if key.alg == alg and key.signs_until])
    until = max(key.signs_until for key in ring.keys if key.alg == alg and key.signs_until)
    report(
        f"{alg} keys sign no more from {timestamp(until)} on, and leave the JWKS at {timestamp(until + RETIRE_AFTER)}."
    )
    if as_json:
        print_json(_describe_all(ring, here.clock()))


@keys.command("check")
@click.argument("file", required=False, type=click.Path(path_type=Path))
@click.option("--svg", metavar="FILE", type=click.Path(path_type=Path), help="Draw the timeline.")
@json_option
def check_keys(file: Path | None, svg: Path | None, *, as_json: bool) -> None:
    """Check a ring, show its next year, and fail if a step is unsafe.

    The ring is that of the settings. With FILE the step from it to the ring in FILE is checked too.
    """
    here = services()
    backend = _file_home(here, file.absolute()) if file else here.keys.manager.backend
    ring, now = backend.read(), here.clock()
    if not as_json:
        print_line(draw_text(ring, now, now + timedelta(seconds=YEAR)))
    if svg:
        try:
            svg.write_text(draw_svg(ring, now, now + timedelta(seconds=YEAR)), encoding="utf-8")
        except OSError as error:
            raise ManagementError(f"{svg} cannot be written: {error.strerror}") from None
    rules = rules_for(here.settings, backend)
    warned = find_warnings(ring, now, rules)
    found = find_problems(ring, now, rules)
    if file and not here.keys.manager.backend.is_empty():
        step = find_unsafe_changes(here.keys.manager.backend.read(), ring, now, here.keys.manager.rules)
        found = list(dict.fromkeys([*found, *step]))
    if as_json:
        message = {"is_safe": not found, "faults": found, "warnings": warned, "keys": _describe_all(ring, now)}
        print_json(message)
    for warning in warned:
        report(f"Warning: {warning}.")
    if found:
        raise ManagementError("; ".join(found))
    report(f"{backend.name} is safe.")


@keys.command("export", context_settings=KID_FIRST)
@click.argument("kid")
@json_option
def export_key(kid: str, *, as_json: bool) -> None:
    """Print a key's public half as PEM, or as a JWK with --json."""
    key = find(services().keys.manager.backend.read(), kid)
    if as_json:
        print_json(key.public_jwk)
    else:
        print_line(public_pem(key).removesuffix("\n"))


@keys.command("move")
@click.argument("destination")
@json_option
def move_ring(destination: str, *, as_json: bool) -> None:
    """Copy the ring to DESTINATION: `database`, or the path of a file. The old ring stays until you remove it."""
    here = services()
    try:
        place = parse_keyring(destination)
    except ValueError as error:
        raise ManagementError(f"DESTINATION {error}") from None
    if place == here.settings.keyring:
        raise ManagementError(f"{here.keys.manager.backend.name} is there already")
    ring = here.keys.manager.move_to(here.keys.open_backend(place))
    _leave_trace(here, "moved", [key.kid for key in ring.keys])
    report(
        f"{len(ring.keys)} keys were copied from {here.keys.manager.backend.name}. "
        f"Set TOKENHOUSE_KEYRING={destination} on every server and restart it; "
        "change no key meanwhile. Then remove what is left behind: "
        f"{', '.join(here.keys.manager.backend.leftovers()) or 'nothing'}."
    )
    if as_json:
        print_json(_describe_all(ring, here.clock()))


def _ask(harm: str, *, yes: bool) -> None:
    """Ask whether to continue, after saying what would break."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise ManagementError(f"{harm}: say --yes")
    click.confirm(f"{harm[0].upper()}{harm[1:]}. Go on?", abort=True, err=True)


def _kids(here: Services) -> set[str]:
    return set() if here.keys.manager.backend.is_empty() else {key.kid for key in here.keys.manager.backend.read().keys}


def _leave_trace(here: Services, change: str, kids: Sequence[str]) -> None:
    """Record a change in the audit log. A ring in a file needs no database; without one nothing is recorded."""
    with suppress(SQLAlchemyError):
        here.audit.outbox.put_alone(KeyRingChanged(by=system_user(), change=change, kids=tuple(kids)))


def _file_home(here: Services, path: Path) -> KeyringBackend:
    if not path.exists():
        raise ManagementError(f"there is no file {path}")
    backend = here.keys.open_backend(path)
    assert isinstance(backend, FileKeyring)  # noqa: S101 - A path was given.
    return backend


def _report_start(here: Services, key: SigningKey) -> None:
    if key.alg == here.settings.signing_alg or key.alg in _algs_of_apis(here):
        report(f"{key.kid} signs from {timestamp(key.signs_from)} on.")
    else:
        report(
            f"{key.kid} may sign from {timestamp(key.signs_from)} on, and does when TOKENHOUSE_SIGNING_ALG={key.alg} "
            f"is set then. Some verifiers refuse a JWKS with keys of several algorithms, which it is until then."
        )


def _longest_token(here: Services) -> timedelta:
    """Return the longest lifetime of today's tokens; the longest allowed one if the clients cannot be read."""
    try:
        longest = max(here.settings.access_token_lifetime, here.clients.repository.longest_lifetime() or 0)
    except SQLAlchemyError:
        longest = DAY
    here.clients.repository.end_reading()
    return timedelta(seconds=longest)


def _harm_of_revoking(ring: Ring, key: SigningKey, now: datetime, longest_token: timedelta) -> str:
    state = ring.state_of(key, now)
    if state is KeyState.RETIRING:
        left = min(ring.spans(key)[-1].start - now, longest_token)
    else:
        left = longest_token if state is KeyState.SIGNING or key in ring.usable(now) else timedelta()
    seconds = int(left.total_seconds())
    return f"breaks up to {seconds} s of live tokens" if seconds > 0 else "breaks no live token"


def _tell_revocation(here: Services, ring: Ring, kid: str, harm: str, alg: str | None) -> None:
    now = here.clock()
    wait = here.keys.manager.rules.propagation_seconds
    report(f"{kid} leaves the JWKS of each worker when it sees this, within {wait} s; it {harm}.")
    try:
        signing = ring.signing_key(now, alg)
    except StartError as error:
        report(f"Warning: {error}.")
        return
    report(f"{signing.kid} signs.")
    known = here.keys.manager.rules.known_from(ring, signing)
    if known > now:
        report(
            f"Warning: no standby had been announced for long enough. Until {timestamp(known)} a verifier may have a "
            f"JWKS without {signing.kid}, and refuse fresh tokens."
        )


def _report_warnings(here: Services, ring: Ring) -> None:
    for warning in find_warnings(ring, here.clock(), here.keys.manager.rules):
        report(f"Warning: {warning}.")


def _describe_all(ring: Ring, now: datetime) -> list[dict[str, Any]]:
    return [_describe(ring, key, now) for key in ring.keys]


def _describe(ring: Ring, key: SigningKey, now: datetime) -> dict[str, Any]:
    following = next((span for span in ring.spans(key) if span.start > now), None)
    return {
        "kid": key.kid,
        "alg": key.alg,
        "state": str(ring.state_of(key, now)),
        "since": timestamp(ring.since(key, now)),
        "until": timestamp(following.start if following else None),
        "next": str(following.state) if following else None,
        "published_at": timestamp(key.published_at),
        "signs_from": timestamp(key.signs_from),
        "signs_until": timestamp(key.signs_until),
        "revoked_at": timestamp(key.revoked_at),
        "jwks_max_age": format_duration(key.jwks_max_age) if key.jwks_max_age else None,
        "bits": size_in_bits(key.private_key),
    }


def _uses_where_known(here: Services) -> Mapping[str, KeyUsage] | None:
    """Return how many tokens keys have signed; ``None`` without a database, which a ring in a file does not need."""
    try:
        return here.keys.usage.read()
    except SQLAlchemyError:
        return None


def _describe_use(uses: Mapping[str, KeyUsage] | None, key: SigningKey) -> dict[str, Any]:
    use = uses.get(key.kid) if uses is not None else None
    return {
        "tokens_signed": use.tokens if use else None if uses is None else 0,
        "first_signed_at": timestamp(use.first_used_at) if use else None,
        "last_signed_at": timestamp(use.last_used_at) if use else None,
    }
