"""Where the time of a token goes, in CPU microseconds of whole requests: ``make profile``.

A stage costs up to twice what a loop of it alone shows, since stages evict each other from the processor's caches; so
clocks are put around the stages of a server that works (``stages.py``). Each costs about a microsecond where it stands;
the first line is what the same server uses without them. ``--svg FILE`` draws the picture of ``docs/performance.md``.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from xml.sax.saxutils import escape

from load import Load, drive, require_wrk
from subjects import ROOT, tokenhouse

CONNECTIONS = 16
STAGES = str(ROOT / "bench" / "stages.py")
WIDTH, LINE, LABEL = 720, 22, 230


def loaded(seconds: float, *, on_postgresql: bool, options: Sequence[str] = ()) -> Load:
    """Tokens under load, once it is warm."""
    with tokenhouse(on_postgresql=on_postgresql, options=options) as subject:
        drive(subject, connections=CONNECTIONS, seconds=1)
        return drive(subject, connections=CONNECTIONS, seconds=seconds)


def stages(seconds: float, *, on_postgresql: bool) -> list[tuple[str, float]]:
    """CPU microseconds of each stage for a token, the costliest first."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["BENCH_STAGES"] = folder
        loaded(seconds, on_postgresql=on_postgresql, options=["--config", STAGES])
        time.sleep(0.5)
        found: dict[str, list[float]] = {}
        for file in Path(folder).glob("*.json"):
            for stage, (count, spent) in json.loads(file.read_text()).items():
                known = found.setdefault(stage, [0, 0.0])
                known[0] += count
                known[1] += spent
    tokens = found["signature"][0]
    return sorted(((stage, spent / tokens) for stage, (_, spent) in found.items()), key=lambda one: -one[1])


def drawn(budget: Sequence[tuple[str, float]], whole: float) -> Iterator[str]:
    """The budget as an SVG."""
    height = LINE * len(budget) + 40
    most = max(spent for _, spent in budget)
    yield (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" '
        'font-family="sans-serif" font-size="13">'
    )
    yield f'<text x="0" y="16" font-weight="bold">One token: {whole:.0f} µs of CPU</text>'
    for number, (stage, spent) in enumerate(budget):
        y = 30 + number * LINE
        length = spent / most * (WIDTH - LABEL - 60)
        colour = "#b3541e" if stage == "signature" else "#4a6f8a"
        yield f'<text x="{LABEL - 8}" y="{y + 13}" text-anchor="end">{escape(stage)}</text>'
        yield f'<rect x="{LABEL}" y="{y}" width="{length:.1f}" height="{LINE - 6}" fill="{colour}"/>'
        yield f'<text x="{LABEL + length + 6:.1f}" y="{y + 13}">{spent:.0f}</text>'
    yield "</svg>"


def main() -> None:
    """Measure, print and draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=8)
    parser.add_argument("--postgresql", action="store_true")
    parser.add_argument("--svg", type=Path, metavar="FILE")
    options = parser.parse_args()
    require_wrk()
    bare = loaded(options.seconds, on_postgresql=options.postgresql)
    budget = stages(options.seconds, on_postgresql=options.postgresql)
    print(f"{bare.cpu_us:7.0f} us of CPU for a token without clocks, {bare.rate:,.0f} tokens a second")
    print(f"{sum(spent for _, spent in budget):7.0f} us in the stages below, with their clocks")
    for stage, spent in budget:
        print(f"{spent:7.1f}  {stage}")
    if options.svg:
        options.svg.write_text("\n".join(drawn(budget, bare.cpu_us)) + "\n")


if __name__ == "__main__":
    main()
