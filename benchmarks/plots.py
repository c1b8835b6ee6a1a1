"""The plots of the docs: SVG that can be read on light and on dark paper."""

from collections.abc import Mapping
from pathlib import Path

from benchmarks.peers import PEERS

OURS, THEIRS, INK = "#d9822b", "#6b8fb3", "#808080"
PLOTS = {
    "requests-32": ("requests.32", "User-mode instructions a request, 32 connections"),
    "requests-1": ("requests.1", "User-mode instructions a request, 1 connection"),
    "memory": ("memory", "Bytes an idle connection"),
    "cpu": ("cpu.ratio", "User CPU a request under wrk, over uvloop"),
}


def draw(figures: Mapping[str, float], folder: Path) -> None:
    """Bars for every peer that has the figure."""
    try:
        import matplotlib  # type: ignore[import-not-found, unused-ignore]
    except ImportError:
        print("no plots: pip install matplotlib")
        return
    matplotlib.use("svg")
    matplotlib.rcParams.update(
        {
            "svg.fonttype": "none",  # text stays text: it can be found, and scales
            "svg.hashsalt": "danga_raw",  # the same figures make the same file
            "font.family": "sans-serif",
            "text.color": INK,
            "axes.labelcolor": INK,
            "xtick.color": INK,
            "ytick.color": INK,
        }
    )
    from matplotlib import pyplot  # type: ignore[import-not-found, unused-ignore]

    folder.mkdir(parents=True, exist_ok=True)
    for file, (key, title) in PLOTS.items():
        shown = [peer for peer in PEERS.values() if f"{key}.{peer.name}" in figures]
        if not shown:
            continue
        shown.sort(key=lambda peer: figures[f"{key}.{peer.name}"])
        values = [figures[f"{key}.{peer.name}"] for peer in shown]
        colours = [OURS if peer.name == "danga_raw" else THEIRS for peer in shown]
        plot, axes = pyplot.subplots(figsize=(8, 0.42 * len(shown) + 0.8))
        bars = axes.barh([peer.title for peer in shown], values, color=colours)
        form = "{:,.2f}" if key.endswith("ratio") else "{:,.0f}"
        axes.bar_label(bars, [form.format(value) for value in values], padding=4, color=INK)
        axes.invert_yaxis()
        axes.set_title(title, loc="left")
        axes.margins(x=0.12)
        axes.xaxis.set_visible(False)
        axes.spines[:].set_visible(False)
        axes.tick_params(left=False)
        plot.tight_layout()
        plot.savefig(folder / f"{file}.svg", transparent=True, metadata={"Date": None})
        pyplot.close(plot)
