"""The plots of the docs: SVG, in one version for light and one for dark backgrounds.

The bars that matter differ from the others in brightness and in their hatching, not in hue alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from benchmarks.peers import PEERS
from benchmarks.table import Figure, digits


@dataclass(frozen=True)
class Paper:
    """The colours of a plot; orange and blue are told apart by every kind of colour-blind eye."""

    suffix: str  # of the file's name
    ink: str
    ours: str
    theirs: str


PAPERS = (
    Paper("", ink="#1f2328", ours="#d55e00", theirs="#8fb8d8"),
    Paper("-dark", ink="#e6edf3", ours="#f0a030", theirs="#3f6f96"),
)
PLOTS = {
    "requests-32": ("requests.32", "User-mode instructions per request, 32 connections"),
    "requests-1": ("requests.1", "User-mode instructions per request, 1 connection"),
    "memory": ("memory", "Bytes per idle connection"),
    "cpu": ("cpu.ratio", "User CPU per request under wrk, over uvloop"),
}


def draw(figures: Mapping[str, Figure], folder: Path) -> None:
    """Bars for every peer that has the figure."""
    try:
        import matplotlib  # type: ignore[import-not-found, unused-ignore]
    except ImportError:
        print("no plots: pip install matplotlib")
        return
    matplotlib.use("svg")
    from matplotlib import pyplot  # type: ignore[import-not-found, unused-ignore]

    folder.mkdir(parents=True, exist_ok=True)
    for paper in PAPERS:
        matplotlib.rcParams.update(
            {
                "svg.fonttype": "none",  # text stays text: it can be found, and scales
                "svg.hashsalt": "danga_raw",  # the same figures make the same file
                "font.family": "sans-serif",
                "hatch.color": paper.ink,
                "text.color": paper.ink,
                "axes.labelcolor": paper.ink,
                "xtick.color": paper.ink,
                "ytick.color": paper.ink,
            }
        )
        for file, (key, title) in PLOTS.items():
            values = {
                peer.title: fmean(figures[f"{key}.{peer.name}"])
                for peer in PEERS.values()
                if f"{key}.{peer.name}" in figures
            }
            if not values:
                continue
            names = sorted(values, key=values.__getitem__)
            ours = [name == PEERS["danga_raw"].title for name in names]
            plot, axes = pyplot.subplots(figsize=(8, 0.42 * len(names) + 0.8))
            bars = axes.barh(
                names,
                [values[name] for name in names],
                color=[paper.ours if one else paper.theirs for one in ours],
                hatch=["///" if one else "" for one in ours],
            )
            axes.bar_label(bars, [digits(values[name]) for name in names], padding=4)
            for label, one in zip(axes.get_yticklabels(), ours, strict=True):
                label.set_fontweight("bold" if one else "normal")
            axes.invert_yaxis()
            axes.set_title(title, loc="left")
            axes.margins(x=0.12)
            axes.xaxis.set_visible(False)
            axes.spines[:].set_visible(False)
            axes.tick_params(left=False)
            plot.tight_layout()
            path = folder / f"{file}{paper.suffix}.svg"
            plot.savefig(path, transparent=True, metadata={"Date": None})
            pyplot.close(plot)
