"""Charts as inline SVG, with text, axes and colors of the page's light or dark palette."""

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

# Placeholder colors that matplotlib itself does not use, and the page's colors that replace them.
INK, BASE, TUNED = "#010203", "#040506", "#070809"
THEMED = {INK: "currentColor", BASE: "var(--base)", TUNED: "var(--tuned)"}
BARS = 120  # of a waveform
WIDE = 5.0  # inches: on a phone its text is 11 pixels high
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

    `log` is train/log.jsonl; `normalizer` is that of `dev`, with its version. Runs of earlier versions have no
    intervals of dev.
    """
    steps = [line for line in log if "loss" in line]
    charts = []
    with _figure("optimizer step", "loss (nats per token)") as (axes, drawn):
        axes.plot([line["step"] for line in steps], [line["loss"] for line in steps], color=TUNED, linewidth=1.2)
        axes.set_ylim(bottom=0)
    charts.append(("Training loss", drawn.getvalue()))
    with _figure("optimizer step", "learning rate") as (axes, drawn):
        axes.plot([line["step"] for line in steps], [line["learning_rate"] for line in steps], color=TUNED)
        axes.set_ylim(bottom=0)
    charts.append(("Learning rate", drawn.getvalue()))
    if dev:
        scored = [point if "wer_ci95" in point else {**point, "wer_ci95": [point["wer"]] * 2} for point in dev]
        with _figure("optimizer step", "dev WER") as (axes, drawn):
            places = [point["step"] for point in scored]
            axes.plot(places, [point["wer"] for point in scored], color=TUNED)
            _with_intervals(axes, places, scored, "wer", None)
            axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=None))
            axes.set_ylim(0, 1.1 * max(point["wer_ci95"][1] for point in scored) or 1)
        bars = ", 95 % intervals" if any("wer_ci95" in point for point in dev) else ""
        charts.append((f"Word error rate on dev, normalized by {normalizer}{bars}", drawn.getvalue()))
    return charts


def by_group(groups: Sequence[Mapping[str, Any]], rate: str) -> str:
    """Draws the rates ("WER" or "CER") of both models by group, with intervals of the fine-tuned model."""
    with _figure("", rate, width=max(WIDE, 0.6 * len(groups))) as (axes, drawn):
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
    with _figure(name, rate.upper(), width=WIDE) as (axes, drawn):
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


def scatter(values: Sequence[float | str], rates: Sequence[float], complete: Sequence[bool], x: str, y: str) -> str:
    """Draws a rate over each trial's value: a filled circle, or a hollow one of a trial that is not complete.

    Values that are text are categories, numbers over a factor of ten are on a logarithmic axis.
    """
    names = sorted({each for each in values if isinstance(each, str)}, key=lambda name: (len(name), name))
    places = [names.index(each) if isinstance(each, str) else each for each in values]
    with _figure(x, y) as (axes, drawn):
        for done, fill, label in ((True, TUNED, "complete"), (False, "none", "pruned or failed")):
            own = [at for at, ended in enumerate(complete) if ended == done]
            axes.plot([places[at] for at in own], [rates[at] for at in own], "o", color=TUNED, markerfacecolor=fill,
                      label=label)  # fmt: skip
        if names:
            axes.set_xticks(range(len(names)), names)
            axes.set_xlim(-0.5, len(names) - 0.5)
        elif min(places) > 0 and max(places) >= 10 * min(places):
            axes.set_xscale("log")
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=None))
        if not all(complete):
            axes.legend()
    return drawn.getvalue()


def lines(rates: Mapping[str, Sequence[tuple[int, float]]], best: str, x: str, y: str) -> str:
    """Draws a line a name, with the name at its end; that of `best` is thick."""
    with _figure(x, y) as (axes, drawn):
        for name, points in rates.items():
            if points:
                axes.plot(*zip(*points, strict=True), ".-", color=TUNED if name == best else INK,
                          alpha=1 if name == best else 0.45, linewidth=2.6 if name == best else 1)  # fmt: skip
                axes.annotate(name, points[-1], (5, 0), textcoords="offset points", va="center", fontsize=9)
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=None))
    return drawn.getvalue()


def waveform(samples: npt.NDArray[np.float32]) -> dict[str, Any]:
    """Returns a clip's peaks, (samples,) scaled to the loudest, as `path` of an SVG of `bars` by 100 units."""
    peaks = [float(np.abs(part).max()) for part in np.array_split(samples, min(BARS, len(samples)))]
    loudest = max(*peaks, 1e-9)
    heights = [max(2, round(96 * peak / loudest)) for peak in peaks]  # silence stays a line
    bars = [f"M{at}.5 {(100 - height) / 2:g}v{height}" for at, height in enumerate(heights)]
    return {"bars": len(bars), "path": "".join(bars)}


def histogram(values: Sequence[float], x: str, limits: Sequence[float] = ()) -> str:
    """Draws a histogram of clips by value, with a dashed line at each of `limits`."""
    with _figure(x, "clips") as (axes, drawn):
        _columns(axes, values, limits, bins=min(40, max(8, round(len(values) ** 0.5))))
    return drawn.getvalue()


def shares(values: Sequence[float], x: str, limits: Sequence[float] = ()) -> str:
    """Draws a histogram of shares in bins of 10 %; larger shares than 200 % count as 200 %."""
    with _figure(x, "clips", width=WIDE) as (axes, drawn):
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
