"""Charts as inline SVG, with text, axes and colors of the page's light or dark palette."""

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

# Placeholder colors that matplotlib itself does not use, and the page's colors that replace them.
INK, BASE, TUNED = "#010203", "#040506", "#070809"
THEMED = {INK: "currentColor", BASE: "var(--base)", TUNED: "var(--tuned)"}
MARKS = "os^Dv*XP"  # markers of several lines in one chart
STYLE: Any = {
    "svg.fonttype": "none",  # text stays text: it can be searched, read aloud and scaled
    "font.family": "sans-serif", "font.size": 11,
    "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": INK, "xtick.color": INK, "ytick.color": INK,
    "axes.spines.top": False, "axes.spines.right": False,
    "axes.grid": True, "grid.color": INK, "grid.alpha": 0.12,
    "legend.frameon": False, "lines.linewidth": 1.8,
}  # fmt: skip


def training(
    log: Sequence[Mapping[str, Any]], dev: Sequence[Mapping[str, Any]], normalizer: str
) -> list[tuple[str, str]]:
    """Draws loss, learning rate and dev WER over the steps: a title and an SVG each.

    `log` is train/log.jsonl; `normalizer` is that of `dev`, with its version.
    """
    steps = [line for line in log if "loss" in line]
    charts = []
    with _figure("step", "loss") as (axes, drawn):
        axes.plot([line["step"] for line in steps], [line["loss"] for line in steps], color=TUNED, linewidth=1.2)
        axes.set_ylim(bottom=0)
    charts.append(("Training loss", drawn.getvalue()))
    with _figure("step", "learning rate") as (axes, drawn):
        axes.plot([line["step"] for line in steps], [line["learning_rate"] for line in steps], color=TUNED)
        axes.set_ylim(bottom=0)
    charts.append(("Learning rate", drawn.getvalue()))
    if dev:
        with _figure("step", "dev WER") as (axes, drawn):
            axes.plot([point["step"] for point in dev], [point["wer"] for point in dev], "o-", color=TUNED)
            axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=None))
            axes.set_ylim(0, 1.1 * max(point["wer"] for point in dev) or 1)
        charts.append((f"Word error rate on dev, normalized by {normalizer}", drawn.getvalue()))
    return charts


def by_group(groups: Sequence[Mapping[str, Any]], rate: str) -> str:
    """Draws the rates ("WER" or "CER") of both models by group, with intervals of the fine-tuned model."""
    with _figure("", rate, width=6.4) as (axes, drawn):
        places = list(range(len(groups)))
        axes.plot(places, [group["baseline_rate"] for group in groups], "D", color=BASE, markersize=6, label="base")
        _with_intervals(axes, places, groups, "rate", "fine-tuned")
        axes.set_xticks(places, [f"{group['value']}\n{group['clips']} clips" for group in groups], fontsize=9)
        axes.set_xlim(-0.5, len(groups) - 0.5)
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=None))
        axes.legend()
    return drawn.getvalue()


def over(lines: Mapping[str, Sequence[tuple[float, float, Sequence[float]]]], rate: str, name: str, of: str) -> str:
    """Draws the rate "wer" or "cer" over the values of a setting, such as LoRA's rank.

    `lines` are points (value, rate, bounds of the error bar) by the line's name. Several lines differ in their markers
    and are labeled with `of` and their names.
    """
    values = sorted({value for points in lines.values() for value, _, _ in points})
    with _figure(name, rate.upper(), width=6.4) as (axes, drawn):
        for place, (label, points) in enumerate(lines.items()):
            # Shifted sideways, or the bars of one value would hide each other.
            shift = 1 + 0.03 * (place - (len(lines) - 1) / 2)
            scored = [{rate: middle, f"{rate}_ci95": bounds} for _, middle, bounds in points]
            legend = f"{of} {label}" if len(lines) > 1 else None
            places = [value * shift for value, _, _ in points]
            _with_intervals(axes, places, scored, rate, legend, MARKS[place % len(MARKS)])
        if min(values) > 0 and max(values) >= 4 * min(values):
            axes.set_xscale("log", base=2)
        axes.set_xticks(values, [f"{value:g}" for value in values])
        axes.minorticks_off()
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=None))
        if len(lines) > 1:
            axes.legend()
    return drawn.getvalue()


def histogram(values: Sequence[float], x: str, limits: Sequence[float] = ()) -> str:
    """Draws a histogram of clips by value, with a dashed line at each of `limits`."""
    with _figure(x, "clips") as (axes, drawn):
        _columns(axes, values, limits, bins=min(40, max(8, round(len(values) ** 0.5))))
    return drawn.getvalue()


def shares(values: Sequence[float], x: str, limits: Sequence[float] = ()) -> str:
    """Draws a histogram of shares in bins of 10 %; larger shares than 200 % count as 200 %."""
    with _figure(x, "clips", width=6.4) as (axes, drawn):
        _columns(axes, [min(value, 2.0) for value in values], limits, bins=[tenth / 10 for tenth in range(22)])
        axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=None))
    return drawn.getvalue()


def _columns(axes: Axes, values: Sequence[float], limits: Sequence[float], bins: int | Sequence[float]) -> None:
    axes.hist(values, bins=bins, color=TUNED, alpha=0.75)
    for limit in limits:
        axes.axvline(limit, color=BASE, linestyle="--", linewidth=1.4)
    axes.set_xlim(left=0)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))


def _with_intervals(
    axes: Axes, places: Sequence[float], scored: Sequence[Mapping[str, Any]], rate: str, label: str | None,
    mark: str = "o",
) -> None:  # fmt: skip
    middle = [each[rate] for each in scored]
    reach = [
        [abs(each[rate] - each[f"{rate}_ci95"][end]) for each in scored] for end in (0, 1)
    ]  # a percentile interval need not hold the rate itself
    axes.errorbar(places, middle, yerr=reach, fmt=mark, color=TUNED, capsize=4, markersize=7, label=label)


@contextmanager
def _figure(x: str, y: str, width: float = 4.2) -> Iterator[tuple[Axes, io.StringIO]]:
    """Yields axes to draw on, and the buffer that holds the SVG after the block."""
    drawn = io.StringIO()
    with mpl.rc_context(STYLE | {"svg.hashsalt": f"{x} {y}"}):
        figure = Figure(figsize=(width, 2.9), layout="constrained")
        axes = figure.add_subplot(xlabel=x, ylabel=y)
        yield axes, drawn
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :]
    for placeholder, themed in THEMED.items():
        svg = svg.replace(placeholder, themed)
    drawn.write(svg)
