"""The report of a run: one self-contained HTML page, and a short table for the terminal.

Whatever models, tasks or recipes wrote is data: escaped by the templates, cut where it is endless, its control
characters and direction marks spelled out. The page holds no script and asks no network.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.results import plots
from engine.results.evaluate import FINAL_VOTE, SINGLE_AGENT
from engine.results.findings import (
    count,
    describe,
    describe_change,
    duration,
    headline,
    measures,
    moment,
    notes,
    own_warnings,
    percent,
    signed,
)
from engine.results.report_data import Iteration, ReportData, Training
from engine.results.report_debates import overview, stage_views
from engine.results.report_transcripts import make_transcript

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

MAX_TEXT = 20_000  # characters of one text on the page; a model may write without end
MAX_TRANSCRIPTS = 24
MAX_STAGES = 12  # stages whose debates are told of, the latest ones
MAX_TIMELINES = 6  # iterations whose timeline is drawn, the latest ones
MAX_LISTED = 200  # rows of tables that grow with the run


def write_report(data: ReportData, path: str | os.PathLike[str]) -> Path:
    """Write the page; an older one is replaced in one step. Without matplotlib the page says so and has no plots."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    page = render_report(data)
    try:
        draft.write_text(page, encoding="utf-8")
        draft.replace(target)
    except OSError:
        draft.unlink(missing_ok=True)
        raise
    return target


def render_report(data: ReportData) -> str:
    """The page as text."""
    drawings, missing = _plots(data)
    page = (
        _environment()
        .get_template("report.html.j2")
        .render(
            data=data,
            headline=headline(data),
            notes=notes(data),
            measures=measures(data),
            single=SINGLE_AGENT,
            final=FINAL_VOTE,
            plots=drawings,
            overview=overview(data.statistics),
            stages=stage_views(data.statistics[-MAX_STAGES:], data.likelihoods),
            transcripts=[
                make_transcript(*entry, f"d{n}") for n, entry in enumerate(data.transcripts[:MAX_TRANSCRIPTS])
            ],
            warnings=[*data.warnings, *own_warnings(data), *missing],
            max_listed=MAX_LISTED,
            max_stages=MAX_STAGES,
        )
    )
    return visible(page)


def report_text(data: ReportData) -> str:
    """The result for a terminal: the sentence, then before and after of every measure, in plain columns."""
    comparison = data.change
    rows = [
        ("measure", *(label for label, _ in data.evaluations), *(("change, paired",) if comparison else ()), "tasks")
    ]
    for name in measures(data):
        figures = [evaluation.figure(name) for _, evaluation in data.evaluations]
        change = comparison.difference(name) if comparison else None
        tasks = next((figure.num_graded for figure in reversed(figures) if figure), 0)
        changed = (describe_change(change),) if comparison else ()
        rows.append((name, *map(describe, figures), *changed, str(tasks)))
    lines = in_columns(rows)
    return "\n".join([headline(data), *(["", *lines] if len(rows) > 1 else [])]) + "\n"


def in_columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Plain columns for a terminal, a line under the first row. Rows are equally long."""
    shown = [[short(visible(cell).replace("\n", " "), 60) for cell in row] for row in rows]
    widths = [max(len(row[column]) for row in shown) for column in range(len(shown[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in shown]
    return [lines[0], "  ".join("-" * width for width in widths), *lines[1:]]


_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff\ufff9-\uffff\ud800-\udfff]"
)


def visible(text: str) -> str:
    """The text with control characters, lone surrogates and direction marks spelled out, so that none takes effect."""
    return _UNSEEN.sub(lambda match: f"⟨U+{ord(match.group()):04X}⟩", text.replace("\r\n", "\n"))


def short(text: str, limit: int = 80) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined  # 0.1 s: only reports pay for it

    environment = Environment(
        loader=PackageLoader("engine.results"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_clip,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters: dict[str, Callable[..., str]] = {
        "count": count, "describe": describe, "describe_change": describe_change, "duration": duration,
        "moment": moment, "percent": percent, "signed": signed, "short": short,
    }  # fmt: skip
    environment.filters.update(filters)
    return environment


def _clip(value: Any) -> Any:
    """Jinja calls this on every value before it is escaped: what has no end gets one."""
    if isinstance(value, str) and not hasattr(value, "__html__") and len(value) > MAX_TEXT:
        return f"{value[:MAX_TEXT]}… [{len(value) - MAX_TEXT:,} more characters left out]"
    return value


def _plots(data: ReportData) -> tuple[dict[str, list[tuple[str, Markup]]], list[str]]:
    """The plots by section, each with its caption, and what to warn of."""
    from markupsafe import Markup

    try:
        return {
            "accuracy": [(caption, Markup(svg)) for caption, svg in _accuracy(data)],
            "timeline": [(caption, Markup(svg)) for caption, svg in _timelines(data)],
            "loss": [(caption, Markup(svg)) for caption, svg in _losses(data)],
        }, []
    except ImportError:
        lines = ["matplotlib is not installed, so the plots are left out; pip install 'moot[report]' brings it."]
        return {"accuracy": [], "timeline": [], "loss": []}, lines


def _accuracy(data: ReportData) -> Iterator[tuple[str, str]]:
    names = measures(data)
    stages = []
    for label, evaluation in data.evaluations:
        figures = [evaluation.figure(name) for name in names]
        bars = [
            plots.Bar(f.accuracy, f.low, f.high)
            if f and f.accuracy is not None and f.low is not None and f.high is not None
            else None
            for f in figures
        ]
        stages.append((label, bars))
    if any(bar for _, bars in stages for bar in bars):
        yield "Accuracy of every measure with its 95% interval.", plots.accuracy_plot(names, stages, uid="pa")


def _timelines(data: ReportData) -> Iterator[tuple[str, str]]:
    for number, iteration in enumerate(data.iterations[-MAX_TIMELINES:]):
        trainings = [training for training in data.trainings if training.iteration == iteration.iteration]
        known = [*iteration.closed_unix_s, *(p.time_unix_s for t in trainings for p in t.points)]
        start = min(known, default=None) if iteration.started_unix_s is None else iteration.started_unix_s
        if start is None:
            continue
        curves = [
            plots.Curve(
                _name(t), tuple(p.time_unix_s - start for p in t.points), tuple(float(p.step) for p in t.points)
            )
            for t in trainings
        ]
        first, last = iteration.first_step_unix_s, iteration.last_close
        svg = plots.timeline_plot(
            [time - start for time in iteration.closed_unix_s],
            curves,
            None if first is None else first - start,
            None if last is None else last - start,
            uid=f"pt{number}",
        )
        yield f"Iteration {iteration.iteration}: {_overlap(iteration)}", svg


def _losses(data: ReportData) -> Iterator[tuple[str, str]]:
    for number, chosen in enumerate(sorted({training.iteration for training in data.trainings})[-MAX_TIMELINES:]):
        trainings = [training for training in data.trainings if training.iteration == chosen and training.points]
        curves = [
            plots.Curve(_name(t), tuple(float(p.step) for p in t.points), tuple(p.loss for p in t.points))
            for t in trainings
        ]
        if curves:
            yield f"Iteration {chosen}: training loss.", plots.loss_plot(curves, data.loss_label, uid=f"pl{number}")


def _overlap(iteration: Iteration) -> str:
    lead = iteration.lead_s
    if lead is None:
        return "debates closed and optimiser steps taken."
    if lead > 0:
        return f"training and debating overlapped for {duration(lead)} (shaded)."
    return f"training began {duration(-lead)} after the last debate had closed."


def _name(training: Training) -> str:
    return f"{training.agent} ({training.role})" if training.role else training.agent
