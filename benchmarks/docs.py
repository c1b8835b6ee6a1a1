"""The part of docs/performance.md that is figures, and its plots: from the results, never by hand."""

from collections.abc import Mapping
from typing import Any

from benchmarks import plots
from benchmarks.peers import PEERS
from benchmarks.processes import ROOT
from benchmarks.table import as_markdown

PAGE = ROOT / "docs" / "performance.md"
PLOTS = ROOT / "docs" / "img"
BEGIN, END = "<!-- figures: written by benchmarks/run.py -->", "<!-- end of figures -->"
COLUMNS = {
    "requests.32": "instructions, 32 connections",
    "requests.1": "instructions, 1 connection",
    "memory": "bytes an idle connection",
    "cpu.ratio": "user CPU over uvloop",
    "throughput.ratio": "requests a second over uvloop",
}


def peers(figures: Mapping[str, float]) -> str:
    """Every peer with every figure there is of it."""
    rows = []
    for peer in PEERS.values():
        cells = []
        for column in COLUMNS:
            value = figures.get(f"{column}.{peer.name}")
            form = ",.2f" if column.endswith("ratio") else ",.0f"
            cells.append("left out" if value is None else format(value, form))
        rows.append([peer.title, *cells])
    return as_markdown(["", *COLUMNS.values()], rows)


def other(figures: Mapping[str, float]) -> str:
    """The figures behind the ratios of the table."""
    named = {
        "a timer added and fired, 1,000 pending": ("timers.fire.few", "instructions"),
        "the same, 100,000 pending": ("timers.fire.many", "instructions"),
        "a cancel, of 1,000": ("timers.cancel.few", "instructions"),
        "a cancel, of 100,000": ("timers.cancel.many", "instructions"),
        "a pending timer": ("timers.memory", "bytes"),
        "a small write, 10,000 queued": ("queue.few", "instructions"),
        "a small write, 100,000 queued": ("queue.many", "instructions"),
        "a request at 32 busy connections, epoll": ("idle.epoll.0", "instructions"),
        "the same beside 10,000 idle ones": ("idle.epoll.10000", "instructions"),
        "a request at 32 busy connections, poll": ("idle.poll.0", "instructions"),
        "the same beside 1,000 idle ones, poll": ("idle.poll.1000", "instructions"),
        "the same beside 3,000 idle ones, poll": ("idle.poll.3000", "instructions"),
        "import, fastest": ("startup.import", "ms"),
        "import, median": ("startup.import.median", "ms"),
    }
    rows = [
        [what, f"{figures[key]:,.{1 if unit == 'ms' else 0}f} {unit}"]
        for what, (key, unit) in named.items()
        if key in figures
    ]
    return as_markdown(["", "measured"], rows)


def write(results: Mapping[str, Any]) -> None:
    """Put the figures between the marks of the page, and draw the plots."""
    figures: dict[str, float] = results["figures"]
    machine = results["machine"]
    text = "\n\n".join(
        [
            f"Measured on {machine['system']}, {machine['processors']} processors, "
            f"{machine['python']}, uvloop {machine.get('uvloop', 'left out')}.",
            as_markdown(["", "must", "aim", "measured", ""], results["table"]),
            "Every peer:",
            peers(figures),
            "Behind the ratios:",
            other(figures),
            *(f"Left out: {title} ({remedy})." for title, remedy in results["left out"].items()),
        ]
    )
    page = PAGE.read_text()
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise RuntimeError(f"{PAGE} has lost its marks")
    PAGE.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}")
    plots.draw(figures, PLOTS)
