"""Draws a ring's timeline: as text, and as a picture (SVG 1.1). Pure."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from xml.sax.saxutils import escape

from app.keyring.model import KeyState, Ring, SigningKey, Span

LANE_COLUMNS = 60
_MARKS = {KeyState.ANNOUNCED: "·", KeyState.RETIRING: "r", KeyState.SIGNING: "S", KeyState.REVOKED: "x"}
_NOTABLE = [None, KeyState.GONE, KeyState.REVOKED, KeyState.ANNOUNCED, KeyState.RETIRING, KeyState.SIGNING]
"""A column that covers several states shows the last of them in this list, so that hours of a year are seen too."""

_HAPPENS = {
    KeyState.ANNOUNCED: "is announced",
    KeyState.SIGNING: "signs",
    KeyState.RETIRING: "retires",
    KeyState.GONE: "leaves the JWKS",
    KeyState.REVOKED: "is revoked",
}

_SHORTEST_NAME = 8
_WIDTH, _LEFT, _RIGHT, _TOP, _LANE, _BAND = 960, 150, 20, 70, 34, 20
_FILLS = {
    KeyState.ANNOUNCED: "#9ec5e8",
    KeyState.SIGNING: "#2f7d4f",
    KeyState.RETIRING: "#e3b04b",
    KeyState.REVOKED: "#b3403a",
}
_INK, _PAPER, _LINE = "#22272e", "#ffffff", "#d0d7de"
_LABEL_MIN_WIDTH = 70


@dataclass(frozen=True, slots=True)
class Band:
    """A period in which one key has one state, within the range that is drawn."""

    key: SigningKey
    state: KeyState
    start: datetime
    end: datetime


def bands(ring: Ring, key: SigningKey, start: datetime, end: datetime) -> list[Band]:
    """Return the states of ``key`` between ``start`` and ``end``, in order; none while it is unpublished or gone."""
    return [
        Band(key, span.state, max(span.start, start), min(span.end or end, end))
        for span in ring.spans(key)
        if span.state not in {None, KeyState.GONE} and span.start < end and (span.end is None or span.end > start)
    ]


def draw_text(ring: Ring, start: datetime, end: datetime) -> str:
    """Return a lane of :data:`LANE_COLUMNS` characters for each key, then each moment at which a state changes."""
    names = _short_names(ring)
    width = max(map(len, names.values()), default=0)
    lines = [f"{'':<{width}}  {start:%Y-%m-%d}{f'{end:%Y-%m-%d}':>{LANE_COLUMNS - 10}}"]
    for key in _in_order(ring):
        lane = "".join(_column(ring, key, *slice_) for slice_ in _slices(start, end))
        lines.append(f"{names[key.kid]:<{width}}  {lane}  {key.alg}".rstrip())
    lines.append(f"{'':<{width}}  S signs   · announced   r retiring, still in the JWKS   x revoked")
    happens = [f"{time:%Y-%m-%dT%H:%M:%SZ}  {kid} {what}" for time, kid, what in _moments(ring, start, end)]
    return "\n".join([*lines, "", *(happens or ["Nothing changes in this time."])])


def draw_svg(ring: Ring, start: datetime, end: datetime) -> str:
    """Return the same as a picture: a lane for each key, a band for each state, months below."""
    keys = _in_order(ring)
    names = _short_names(ring)
    height = _TOP + _LANE * max(len(keys), 1) + 60
    parts = [
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" role="img" width="{_WIDTH}" height="{height}" '
            f'viewBox="0 0 {_WIDTH} {height}" font-family="system-ui, sans-serif" font-size="12" fill="{_INK}">'
        ),
        "<title>Signing keys over time</title>",
        f"<desc>{escape(draw_text(ring, start, end))}</desc>",
        f'<rect width="{_WIDTH}" height="{height}" fill="{_PAPER}"/>',
        (
            f'<text x="{_RIGHT}" y="24" font-size="15" font-weight="600">Signing keys, '
            f"{start:%Y-%m-%d} to {end:%Y-%m-%d}</text>"
        ),
        *_legend(),
        *_months(start, end, height - 44),
    ]
    for number, key in enumerate(keys):
        top = _TOP + number * _LANE
        parts.append(f'<text x="{_RIGHT}" y="{top + 14}">{escape(names[key.kid])}</text>')
        parts.append(f'<text x="{_RIGHT}" y="{top + 27}" font-size="10" opacity="0.7">{escape(key.alg)}</text>')
        parts += [_band(band, top, start, end) for band in bands(ring, key, start, end)]
    return "\n".join([*parts, "</svg>", ""])


def _in_order(ring: Ring) -> list[SigningKey]:
    return sorted(ring.keys, key=lambda key: (key.signs_from, key.kid))


def _short_names(ring: Ring) -> dict[str, str]:
    """Return the shortest prefixes of all kids, of one length, that distinguish them."""
    kids = [key.kid for key in ring.keys]
    longest = max(map(len, kids), default=0)
    length = next(
        (size for size in range(_SHORTEST_NAME, longest) if len({kid[:size] for kid in kids}) == len(kids)), longest
    )
    return {kid: kid if len(kid) <= length + 1 else f"{kid[:length]}…" for kid in kids}


def _slices(start: datetime, end: datetime) -> Iterator[tuple[datetime, datetime]]:
    step = (end - start) / LANE_COLUMNS
    for number in range(LANE_COLUMNS):
        yield start + number * step, start + (number + 1) * step


def _column(ring: Ring, key: SigningKey, start: datetime, end: datetime) -> str:
    states = {span.state for span in ring.spans(key) if _overlaps(span, start, end)}
    state = max(states, key=_NOTABLE.index, default=None)
    return _MARKS.get(state, " ") if state else " "


def _overlaps(span: Span, start: datetime, end: datetime) -> bool:
    return span.start < end and (span.end is None or span.end > start)


def _moments(ring: Ring, start: datetime, end: datetime) -> Sequence[tuple[datetime, str, str]]:
    """Return time, kid and what happens; of one moment, beginnings come before ends."""
    found = [
        (span.start, list(KeyState).index(span.state), key.kid, _HAPPENS[span.state])
        for key in ring.keys
        for span in ring.spans(key)
        if span.state is not None and start <= span.start < end
    ]
    return [(time, kid, what) for time, _, kid, what in sorted(found)]


def _x(time: datetime, start: datetime, end: datetime) -> float:
    share = (time - start) / (end - start)
    return round(_LEFT + share * (_WIDTH - _LEFT - _RIGHT), 1)


def _band(band: Band, top: int, start: datetime, end: datetime) -> str:
    left, right = _x(band.start, start, end), _x(band.end, start, end)
    width = max(right - left, 2.0)
    message = f"{band.key.kid}: {band.state} from {band.start:%Y-%m-%d %H:%M} to {band.end:%Y-%m-%d %H:%M} UTC"
    light = band.state in {KeyState.SIGNING, KeyState.REVOKED}
    label = (
        f'<text x="{left + 6}" y="{top + 17}" font-size="11" fill="{_PAPER if light else _INK}">{band.state}</text>'
        if width >= _LABEL_MIN_WIDTH
        else ""
    )
    return (
        f'<g><title>{escape(message)}</title><rect x="{left}" y="{top + 3}" width="{round(width, 1)}" height="{_BAND}" '
        f'rx="2" fill="{_FILLS[band.state]}"/>{label}</g>'
    )


def _legend() -> Iterator[str]:
    for number, (state, fill) in enumerate(_FILLS.items()):
        left = _LEFT + number * 110
        yield f'<rect x="{left}" y="38" width="14" height="14" rx="2" fill="{fill}"/>'
        yield f'<text x="{left + 20}" y="50">{state}</text>'


def _months(start: datetime, end: datetime, bottom: int) -> Iterator[str]:
    month = start.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    while month < end:
        if month >= start:
            left = _x(month, start, end)
            yield f'<line x1="{left}" y1="{_TOP - 8}" x2="{left}" y2="{bottom}" stroke="{_LINE}"/>'
            yield f'<text x="{left}" y="{bottom + 16}" font-size="11" text-anchor="middle">{month:%b}</text>'
        month = (month + timedelta(days=32)).replace(day=1)
