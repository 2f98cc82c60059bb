"""The report's plots as inline SVG by matplotlib.

Colours are left to the page: an SVG names the custom properties ``--p00`` (ink), ``--p01`` (muted), ``--p02`` (grid),
``--p03`` (paper) and ``--p10`` to ``--p17`` (series), so one drawing serves light and dark.
No name is read as markup or as maths.
"""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from html import escape
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

INK, MUTED, GRID, PAPER = "#fe0000", "#fe0001", "#fe0002", "#fe0003"  # stand-ins: each becomes var(--pNN) in the page
NUM_SERIES = 8
MAX_BARS = 30  # measures in the accuracy plot
MAX_POINTS = 1500  # a line's points; more cannot be seen
_LINES, _MARKERS = ("-", "--", ":", "-."), "osD^vPX*"
_STYLE: dict[Any, Any] = {  # matplotlib types its keys one by one
    "svg.fonttype": "none",  # text stays text: it can be searched, and takes the page's font
    "text.parse_math": False,  # a "$" in an agent's name is a dollar
    "font.size": 9.5,
    "font.family": "sans-serif",
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.linewidth": 0.8,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "legend.fontsize": 9,
}


class Bar(msgspec.Struct, frozen=True):
    """An accuracy with its 95% interval, all between 0 and 1."""

    accuracy: float
    low: float
    high: float


class Curve(msgspec.Struct, frozen=True):
    """A named line: ``xs`` and ``ys`` are both [N]."""

    name: str
    xs: tuple[float, ...]
    ys: tuple[float, ...]


def accuracy_plot(measures: Sequence[str], stages: Sequence[tuple[str, Sequence[Bar | None]]], *, uid: str) -> str:
    """A dot and its interval for every measure and stage; each stage's bars are aligned with ``measures``."""
    measures = measures[:MAX_BARS]
    with _canvas(6.6, 1.0 + 0.15 * len(measures) * (len(stages) + 0.7)) as canvas:
        axes = canvas.subplots()
        for number, (name, bars) in enumerate(stages):
            colour = MUTED if number == 0 and len(stages) > 1 else _colour(number - (len(stages) > 1))
            offset = (number - (len(stages) - 1) / 2) * 0.62 / len(stages)
            shown = [(row + offset, bar) for row, bar in enumerate(bars[: len(measures)]) if bar is not None]
            centres = [100 * bar.accuracy for _, bar in shown]
            reach = [
                [100 * (bar.accuracy - bar.low) for _, bar in shown],
                [100 * (bar.high - bar.accuracy) for _, bar in shown],
            ]
            axes.errorbar(
                centres,
                [row for row, _ in shown],
                xerr=reach,
                fmt=_MARKERS[number % len(_MARKERS)],
                color=colour,
                markersize=5.5,
                markerfacecolor=PAPER if number == 0 and len(stages) > 1 else colour,
                elinewidth=2.0,
                markeredgewidth=1.6,
                label=_label(name, 40),
            )
        axes.set_yticks(range(len(measures)), [_label(name, 28) for name in measures])
        axes.set_ylim(len(measures) - 0.5, -0.5)
        axes.tick_params(axis="y", length=0)
        axes.grid(visible=False, axis="y")
        axes.set_xlabel("accuracy (% of tasks), with 95% interval")
        _zoom_percent(axes, [bar for _, bars in stages for bar in bars if bar is not None])
        _legend(canvas, axes, len(stages))
        return _svg(
            canvas, uid, "Accuracy with 95% intervals", f"{len(measures)} measures; the table holds the numbers."
        )


def timeline_plot(
    closed_s: Sequence[float],
    steps: Sequence[Curve],
    first_step_s: float | None,
    last_close_s: float | None,
    *,
    uid: str,
) -> str:
    """Debates closed and optimiser steps taken over one iteration; all times in seconds since it started."""
    with _canvas(6.6, 4.2) as canvas:
        top, bottom = canvas.subplots(2, 1, sharex=True)
        _count_line(top, sorted(closed_s), MUTED, "debates")
        for number, curve in enumerate(steps):
            xs, ys = _thin(curve.xs, curve.ys)
            line = _LINES[number // NUM_SERIES % len(_LINES)]
            bottom.step(
                xs, ys, where="post", color=_colour(number), linestyle=line, linewidth=1.8, label=_label(curve.name)
            )
        if first_step_s is not None and last_close_s is not None and first_step_s < last_close_s:
            for axes in (top, bottom):
                axes.axvspan(first_step_s, last_close_s, color=GRID, alpha=0.6, linewidth=0)
        end_s = max([*closed_s, *(x for curve in steps for x in curve.xs), 1e-9])
        for level, (at, text) in enumerate(
            ((first_step_s, "first optimiser step"), (last_close_s, "last debate closed"))
        ):
            if at is not None:
                _mark(top, bottom, at, text, level=level, left=at > 0.5 * end_s)
        top.set_ylabel("debates closed")
        bottom.set_ylabel("optimiser steps")
        bottom.set_xlabel("time since the iteration started (s)")
        for axes in (top, bottom):
            axes.set_ylim(bottom=0)
        bottom.set_xlim(left=0)
        _legend(canvas, bottom, len(steps))
        description = f"{len(closed_s)} debates closed; steps of {len(steps)} trainings."
        return _svg(canvas, uid, "Debates closed and optimiser steps over time", description)


def loss_plot(curves: Sequence[Curve], y_label: str, *, uid: str) -> str:
    """Training loss over optimiser steps, one line a training. Losses that are not finite are left out."""
    with _canvas(6.6, 3.2) as canvas:
        axes = canvas.subplots()
        for number, curve in enumerate(curves):
            points = [(x, y) for x, y in zip(curve.xs, curve.ys, strict=True) if math.isfinite(y)]
            xs, ys = _thin([x for x, _ in points], [y for _, y in points])
            marker = _MARKERS[number % len(_MARKERS)] if len(xs) <= 40 else ""
            line = _LINES[number // NUM_SERIES % len(_LINES)]
            axes.plot(
                xs, ys, color=_colour(number), linestyle=line, marker=marker, markersize=3.5, linewidth=1.6,
                label=_label(curve.name),
            )  # fmt: skip
        axes.set_xlabel("optimiser step")
        axes.set_ylabel(_label(y_label, 60))
        _legend(canvas, axes, len(curves))
        return _svg(canvas, uid, "Training loss over optimiser steps", f"One line for each of {len(curves)} trainings.")


@contextmanager
def _canvas(width_in: float, height_in: float) -> Iterator[Canvas]:
    import matplotlib  # 0.5 s, and an extra: only those who plot need it
    from matplotlib.figure import Figure as Canvas

    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a name in a script that the layout font lacks is still drawn by the browser
        yield Canvas(figsize=(width_in, height_in), layout="constrained")


def _svg(canvas: Canvas, uid: str, title: str, description: str) -> str:
    """The drawing as an <svg> to set into a page: ids unique by ``uid``, colours by name, no style sheet, no links."""
    buffer = io.StringIO()
    canvas.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    view = re.search(r'viewBox="([^"]*)"', text)
    body = text[text.index(">", text.index("<svg")) + 1 :]
    for junk in (r"<metadata>.*?</metadata>", r"<defs>\s*<style.*?</style>\s*</defs>", r"<!--.*?-->"):
        body = re.sub(junk, "", body, flags=re.DOTALL)
    body = re.sub(r' id="', f' id="{uid}-', body)
    body = re.sub(r'xlink:href="#', f'href="#{uid}-', body)
    body = body.replace("url(#", f"url(#{uid}-")
    body = re.sub(r"font: ([0-9.]+px) [^;\"]*", r"font-size: \1", body)
    body = re.sub(r"#fe00(\d\d)", r"var(--p\1)", body)
    return (
        f'<svg class="plot" viewBox="{view.group(1) if view else "0 0 1 1"}" role="img" '
        f'aria-labelledby="{uid}-t {uid}-d"><title id="{uid}-t">{escape(title)}</title>'
        f'<desc id="{uid}-d">{escape(description)}</desc>{body.strip()}'
    )


def _colour(number: int) -> str:
    return f"#fe001{number % NUM_SERIES}"


def _label(text: str, limit: int = 24) -> str:
    """A short label of printable characters: no controls, no marks that turn the reading direction."""
    plain = "".join(mark if mark.isprintable() else "\ufffd" for mark in text[: limit + 1])
    return (plain if len(plain) <= limit else plain[: limit - 1] + "…").lstrip("_") or "?"  # "_x" has no legend


def _legend(canvas: Canvas, axes: Axes, count: int) -> None:
    if count > 1 and axes.get_legend_handles_labels()[0]:
        canvas.legend(*axes.get_legend_handles_labels(), loc="outside upper left", ncols=min(count, 4))


def _zoom_percent(axes: Axes, bars: Sequence[Bar]) -> None:
    low = min((bar.low for bar in bars), default=0.0)
    high = max((bar.high for bar in bars), default=1.0)
    axes.set_xlim(max(math.floor(10 * low) * 10 - 2, -2), min(math.ceil(10 * high) * 10 + 2, 102))


def _count_line(axes: Axes, times: Sequence[float], colour: str, name: str) -> None:
    xs, ys = _thin([0.0, *times], list(range(len(times) + 1)))
    axes.step(xs, ys, where="post", color=colour, linewidth=1.8, label=name)


def _mark(top: Axes, bottom: Axes, at: float, text: str, *, level: int, left: bool) -> None:
    """A moment, as a line through both panels, named above the upper one; each name on a text line of its own."""
    for axes in (top, bottom):
        axes.axvline(at, color=INK, linewidth=1.0, linestyle="-" if level else "--")
    top.annotate(
        f"{text}, {at:.1f} s", (at, 1.0), xycoords=("data", "axes fraction"), xytext=(0, 5 + 12 * level),
        textcoords="offset points", ha="right" if left else "left", va="bottom", fontsize=9,
    )  # fmt: skip


def _thin(xs: Sequence[float], ys: Sequence[float]) -> tuple[list[float], list[float]]:
    """At most about ``MAX_POINTS`` of the points, evenly taken, the last one always among them."""
    every = max(1, math.ceil(len(xs) / MAX_POINTS))
    kept = sorted({*range(0, len(xs), every), *range(max(len(xs) - 1, 0), len(xs))})
    return [xs[i] for i in kept], [ys[i] for i in kept]
