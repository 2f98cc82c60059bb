"""The report: what it says, that it is whole without a network, and that nothing hostile gets through as markup."""

from __future__ import annotations

import builtins
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import msgspec
import pytest

from engine.results.evaluate import Evaluation, Figure, evaluate
from engine.results.findings import duration, headline, moment, notes, signed
from engine.results.report import MAX_TEXT, render_report, report_text, visible, write_report
from engine.results.report_data import (
    AdapterEntry,
    Iteration,
    ReportData,
    SetAside,
    Stage,
    Training,
    TrainingPoint,
    UsageTotals,
)
from protocols.answer import Answer, grade
from protocols.graph import Debate, Edge, Utterance, Verdict
from protocols.message import ImagePart, Message, Reply, TextPart, Usage
from protocols.statistics import statistics
from protocols.task import Task

HOSTILE = (
    "</style></title></textarea></pre></svg>--><script>alert(1)</script><img src=x onerror=alert(1)>"
    "\" onmouseover=\"alert(1)\" ' onfocus='alert(1)' {{ 7*7 }} {% raw %} &lt;b&gt; $x^2$ javascript:alert(1) "
    "\x00\x07\x1b[31m\x9b\u202eevil\u2066\u200f\ud800\ufeff"
)
VOID = {"meta", "br", "path", "circle", "rect", "use", "hr"}


def debate(text: str, number: int = 0, *, right: bool = True) -> Debate:
    """Two agents, two rounds; every field that can come from outside says ``text``."""
    task = Task(id=f"{text}{number}", question=text, gold=(text, "1"), choices=(text,), dataset=text)
    built = Debate(id=text, task=task, protocol=text, seed=1, cast={text: (text,)})
    for turn, (stage, seat) in enumerate(((0, 0), (0, 1), (1, 0), (1, 1))):
        answer = Answer("1" if right else "2" if seat else text[:40] + "?")
        node_id = f"{stage}.{text}.{seat}"
        built.add(
            Utterance(
                id=node_id,
                agent=f"{text}{seat}",
                role=text,
                round=stage,
                phase=text,
                prompt=(Message("user", (ImagePart(sha256=text, media_type=text), TextPart(text))),),
                reply=Reply(ask_id=node_id, text=text * (turn + 1), model=text, adapter=text, usage=Usage(5, 3, 1)),
                answer=answer,
                correct=grade(answer, task),
            ),
            [Edge(f"0.{text}.{peer}", node_id, "saw") for peer in (0, 1) if stage],
        )
    for node_id, answer in (
        (f"1.{text}.judge", Answer()),
        (f"1.{text}.judge~1", Answer(text if right else None, text, details={text: text, "reason": text})),
    ):
        edges = [Edge(f"1.{text}.{seat}", node_id, "critique" if seat else "verdict") for seat in (0, 1)]
        judged = Reply(ask_id=node_id, text=text, model=text, usage=Usage(5, 3, 1))
        fields = {"agent": text, "role": text, "round": 1, "phase": text, "prompt": (), "answers": False}
        built.add(Utterance(id=node_id, reply=judged, answer=answer, **fields), edges)  # type: ignore[arg-type]
    built.failures = [text]
    built.close(
        Verdict(
            answer="1" if right else text,
            stop_reason=text,
            aggregator="majority_vote" if number == 1 else text,  # votes are told only of this one
            votes=2,
            correct=right,
            details={"side": text, text: text},
        )
    )
    return built


def report(text: str) -> ReportData:
    stages = [[debate(text, n, right=n < share) for n in range(6)] for share in (2, 5)]
    points = tuple(TrainingPoint(time_unix_s=100.0 + n, step=n, loss=2.0 / n) for n in range(1, 6))
    return ReportData(
        run_name=text,
        recipe=text,
        fingerprint=text,
        machine=text,
        started_unix_s=90.0,
        finished_unix_s=200.0,
        stages=(Stage(text, 3.0),),
        evaluations=tuple((f"{text} {n}", evaluate(stage)) for n, stage in enumerate(stages)),
        statistics=tuple((f"{text} {n}", statistics(stage)) for n, stage in enumerate(stages)),
        iterations=(Iteration(iteration=1, closed_unix_s=(99.0, 103.0, 108.0), first_step_unix_s=101.0),),
        trainings=(Training(agent=text, role=text, points=points), Training(agent=f"_{text}", points=points)),
        loss_label=text,
        adapters=(AdapterEntry(name=text, agent=text, base=text, parent=text, data_hash=text, metrics={text: 0.5}),),
        usage=UsageTotals(prompt_tokens=10, completion_tokens=5, num_replies=4, tokens_per_s=2.5, replies_per_s=1.0),
        set_aside=(SetAside(text, text),),
        transcripts=tuple((text, one) for one in stages[0][1:4]),
        warnings=(text,),
    )


class Page(HTMLParser):
    """The elements of a page as a browser would find them."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag, f"</{tag}> closes nothing"

    def all(self, attribute: str) -> list[str]:
        return [value for _, attrs in self.elements if (value := attrs.get(attribute)) is not None]


@pytest.fixture(scope="module")
def benign() -> str:
    return render_report(report("plain words " * 20))


@pytest.fixture(scope="module")
def hostile() -> str:
    return render_report(report(HOSTILE))


def test_hostile_text_changes_no_element_of_the_page(benign: str, hostile: str) -> None:
    shapes = [[(tag, sorted(attrs)) for tag, attrs in Page(text).elements] for text in (benign, hostile)]
    assert shapes[0] == shapes[1]


def test_hostile_text_stays_text(hostile: str) -> None:
    page = Page(hostile)
    assert page.open == []
    tags = [tag for tag, _ in page.elements]
    assert not {"script", "img", "iframe", "object", "embed", "link", "base", "form", "input"} & set(tags)
    assert tags.count("style") == 1
    assert not [name for _, attrs in page.elements for name in attrs if name.startswith("on") or name == "src"]
    assert hostile.lower().count("<script") == 0 and hostile.count("</style>") == 1
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in hostile
    assert "{{ 7*7 }}" in hostile  # shown, not computed
    assert not re.search(
        "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff\ud800-\udfff]", hostile
    )
    assert "⟨U+202E⟩evil" in hostile


def test_huge_text_is_cut() -> None:
    endless = report("x" * 300_000)
    page = render_report(endless)
    assert len(page) < 40 * MAX_TEXT + 400_000
    assert "more characters left out" in page


def test_the_page_asks_nothing_of_a_network(benign: str) -> None:
    page = Page(benign)
    policy = [attrs["content"] for tag, attrs in page.elements if attrs.get("http-equiv") == "Content-Security-Policy"]
    assert policy == ["default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"]
    assert all(link.startswith("#") for link in page.all("href") + page.all("xlink:href"))
    assert not re.search(r"@import|url\((?!#)", benign)
    assert "http://" not in benign and "https://" not in benign


def test_the_page_can_be_found_ones_way_in(benign: str) -> None:
    page = Page(benign)
    ids = page.all("id")
    assert len(ids) == len(set(ids))
    assert {link[1:] for link in page.all("href")} <= set(ids)
    for label in page.all("aria-labelledby"):
        assert set(label.split()) <= set(ids)
    for tag, attrs in page.elements:
        assert tag != "th" or attrs.get("scope") in {"col", "row", "colgroup"}
        assert tag != "svg" or attrs.get("role") in {"img", "group"}
    tags = [tag for tag, _ in page.elements]
    assert tags.count("h1") == 1 and tags.count("main") == 1 and tags.count("nav") == 1
    assert [attrs.get("lang") for tag, attrs in page.elements if tag == "html"] == ["en"]
    assert tags.count("svg") == 3 + 3  # accuracy, timeline, loss; three debates


def test_a_page_that_cannot_be_written_leaves_nothing_beside_it(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError):
        write_report(ReportData(run_name="nothing"), tmp_path / "folder")
    assert [item.name for item in tmp_path.iterdir()] == ["folder"]


def test_an_empty_report_is_still_a_page(tmp_path: Path) -> None:
    path = write_report(ReportData(run_name="nothing"), tmp_path / "deep" / "report.html")
    page = path.read_text(encoding="utf-8")
    assert Page(page).open == []
    assert "Nothing was evaluated in this run." in page
    assert [file.name for file in path.parent.iterdir()] == ["report.html"]


def test_without_matplotlib_the_page_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    load = builtins.__import__

    def refuse(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.split(".", maxsplit=1)[0] == "matplotlib":
            raise ImportError("no matplotlib")
        return load(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    page = render_report(report("words"))
    assert "matplotlib is not installed" in page
    assert "svg class=&quot;plot" not in page and 'svg class="plot"' not in page


def stage(name: str, accuracy: float, low: float, high: float, scores: dict[str, float]) -> tuple[str, Evaluation]:
    single = Figure(
        name="single agent", accuracy=accuracy, low=low, high=high, method="clustered", num_tasks=300, num_graded=300,
        num_replies=900, parsed_share=0.9, accuracy_parsed=accuracy, scores=scores,
    )  # fmt: skip
    return name, Evaluation(num_tasks=300, num_graded=300, num_debates=300, figures=(single,))


GAIN = ({f"t{n}": 0.0 for n in range(4)}, {"t0": 1.0, "t1": 1.0, "t2": 1.0, "t3": 0.0})


def test_the_headline_is_computed_and_honest() -> None:
    before = stage("before", 0.312, 0.280, 0.344, GAIN[0])
    apart = ReportData(run_name="r", evaluations=(before, stage("after", 0.45, 0.41, 0.49, GAIN[1])))
    # d = 0, 1, 1, 1: mean 0.75, s^2 = 0.75 / 3, se = 0.25, low 0.75 - 0.489991
    assert headline(apart) == (
        "Accuracy of a single agent rose from 31.2% [28.0, 34.4] to 45.0% [41.0, 49.0] on 300 held-out tasks; "
        "the intervals do not overlap, and the paired change of +75.0 [+26.0, +100.0] points excludes zero."
    )
    clear = ReportData(run_name="r", evaluations=(before, stage("after", 0.33, 0.30, 0.36, GAIN[1])))
    assert "the intervals overlap, but the paired change of" in headline(clear)
    assert headline(clear).endswith("excludes zero.")
    same = ReportData(run_name="r", evaluations=(before, stage("after", 0.29, 0.26, 0.32, GAIN[0])))
    assert "fell from 31.2% [28.0, 34.4] to 29.0%" in headline(same)
    assert headline(same).endswith("does not exclude zero.")


def test_the_headline_without_a_comparison() -> None:
    one = ReportData(run_name="r", evaluations=(stage("only", 0.312, 0.280, 0.344, {}),))
    assert headline(one) == "Accuracy of a single agent is 31.2% [28.0, 34.4] on 300 held-out tasks."
    ungraded = Evaluation(num_tasks=5, figures=(Figure(name="single agent", num_tasks=5, num_replies=5),))
    assert "no accuracy" in headline(ReportData(run_name="r", evaluations=(("only", ungraded),)))


def test_notes_tell_when_training_began() -> None:
    early = Iteration(iteration=1, closed_unix_s=(10.0, 30.0), first_step_unix_s=17.5)
    late = msgspec.structs.replace(early, first_step_unix_s=31.0)
    first, second = notes(ReportData(run_name="r", iterations=(early, late)))
    assert "12.5 s before the last debate closed" in first
    assert "1.0 s after the last debate closed" in second


def test_notes_tell_of_debates_that_were_ahead_of_training() -> None:
    (told,) = notes(ReportData(run_name="r", iterations=(Iteration(iteration=2, stale_share=0.5, most_behind=1),)))
    assert told.startswith("In the debates of iteration 2 50.0% of what learners said came from a version older ")
    assert told.endswith("at most 1 behind.")


def test_the_terminal_table() -> None:
    text = report_text(ReportData(run_name="r", evaluations=(stage("before", 0.312, 0.280, 0.344, GAIN[0]),)))
    assert text.splitlines()[2:] == [
        "measure       before              tasks",
        "------------  ------------------  -----",
        "single agent  31.2% [28.0, 34.4]  300",
    ]
    assert "\x1b" not in report_text(report(HOSTILE)) and "\u202e" not in report_text(report(HOSTILE))


def test_losses_that_are_not_numbers_are_left_out_with_a_warning() -> None:
    points = tuple(
        TrainingPoint(time_unix_s=1.0 + n, step=n, loss=loss) for n, loss in enumerate((2.0, float("nan"), 1.0))
    )
    page = render_report(ReportData(run_name="r", trainings=(Training(agent="ada", points=points),)))
    assert "not finite numbers" in page and "nan" not in page.lower()


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0.421, "0.42 s"), (61.04, "61.0 s"), (252.0, "4 min 12 s"), (11_100.0, "3 h 5 min")]
)
def test_durations(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown


def test_small_words() -> None:
    assert (signed(0.138), signed(-0.01), signed(-0.0001)) == ("+13.8", "−1.0", "0.0")
    assert moment(0.0) == "1970-01-01 00:00:00 UTC" and moment(1e30) == "–" and moment(float("nan")) == "–"
    assert visible("a\r\nb\x00\u202e") == "a\nb⟨U+0000⟩⟨U+202E⟩"
