"""Writes the figures and plots of docs/performance.md from the results: none is typed by hand."""

from collections.abc import Mapping
from typing import Any

from benchmarks import plots
from benchmarks.peers import PEERS
from benchmarks.processes import ROOT
from benchmarks.table import HEAD, Figure, as_markdown, numbers

PAGE = ROOT / "docs" / "performance.md"
PLOTS = ROOT / "docs" / "img"
BEGIN, END = "<!-- figures: written by benchmarks/run.py -->", "<!-- end of figures -->"
COLUMNS = {
    "requests.32": "instructions, 32 connections",
    "requests.1": "instructions, 1 connection",
    "memory": "bytes per idle connection",
    "cpu.ratio": "user CPU over uvloop",
    "throughput.ratio": "requests per second over uvloop",
}
BEHIND = {
    "short.danga_raw": ("a connection, accepted in an other fd's callback", "instructions"),
    "short.listener": ("a connection, accepted by a Listener", "instructions"),
    "short.fair": ("a connection, fair hand-written loop", "instructions"),
    "slow.1.danga_raw": ("a write that blocks and resumes", "instructions"),
    "slow.1.fair": ("a write that blocks and resumes, fair hand-written loop", "instructions"),
    "timers.fire.few": ("a timer added and fired, 1,000 pending", "instructions"),
    "timers.fire.many": ("a timer added and fired, 100,000 pending", "instructions"),
    "timers.cancel.few": ("a cancel, of 1,000", "instructions"),
    "timers.cancel.many": ("a cancel, of 100,000", "instructions"),
    "timers.memory": ("a pending timer", "bytes"),
    "queue.few": ("a small write, 10,000 queued", "instructions"),
    "queue.many": ("a small write, 100,000 queued", "instructions"),
    "idle.epoll.0": ("a request at 32 busy connections, epoll", "instructions"),
    "idle.epoll.10000": ("a request beside 10,000 idle ones, epoll", "instructions"),
    "idle.poll.0": ("a request at 32 busy connections, poll", "instructions"),
    "idle.poll.1000": ("a request beside 1,000 idle ones, poll", "instructions"),
    "idle.poll.3000": ("a request beside 3,000 idle ones, poll", "instructions"),
    "startup.import": ("import, fastest", "ms"),
    "startup.import.median": ("import, median", "ms"),
}


def peers(figures: Mapping[str, Figure]) -> str:
    """Every peer with all of its figures."""
    rows = []
    for peer in PEERS.values():
        measured = (figures.get(f"{column}.{peer.name}") for column in COLUMNS)
        rows.append([peer.title, *(numbers(each, "") or "left out" for each in measured)])
    return as_markdown(["", *COLUMNS.values()], rows)


def behind(figures: Mapping[str, Figure]) -> str:
    """The figures behind the ratios of the tables."""
    rows = [
        [what, numbers(figures[key], unit)]
        for key, (what, unit) in BEHIND.items()
        if key in figures
    ]
    return as_markdown(["", "measured"], rows)


def write(results: Mapping[str, Any]) -> None:
    """Put the figures between the marks of the page, and draw the plots."""
    figures = {key: tuple(values) for key, values in results["figures"].items()}
    machine = results["machine"]
    sections = [
        f"Measured on {machine['system']}, {machine['processors']} processors, "
        f"{machine['python']}, uvloop {machine.get('uvloop', 'left out')}.\n"
        "Where there are two figures, they are for the two seeds of the heap."
    ]
    for group in results["groups"].values():
        what = group["what"]
        sections += [f"### {what[0].upper()}{what[1:]}", as_markdown(HEAD, group["rows"])]
    sections += ["### Every peer", peers(figures), "### Behind the ratios", behind(figures)]
    sections += [f"Left out: {what} ({remedy})." for what, remedy in results["left out"].items()]
    page = PAGE.read_text()
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise RuntimeError(f"{PAGE} has lost its marks")
    PAGE.write_text("\n\n".join([f"{before}{BEGIN}", *sections, f"{END}{after}"]))
    plots.draw(figures, PLOTS)
