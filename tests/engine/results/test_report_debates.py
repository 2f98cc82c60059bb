"""How debates went and what was said in them, as the report tells it."""

from __future__ import annotations

import html
import re
from pathlib import Path

import msgspec
import pytest

from engine.loop import keep_statistics
from engine.record.folder import Manifest, RunFolder
from engine.results.collect import collect
from engine.results.evaluate import evaluate
from engine.results.report import render_report
from engine.results.report_data import ReportData
from engine.results.report_debates import overview, stage_views
from engine.results.report_tables import MAX_NAMES, Table
from protocols.answer import Answer
from protocols.graph import Debate, Verdict
from protocols.statistics import Influence, Score, Spend, Stance, Statistics, statistics
from tests.engine.results.test_drawing import MODERATED, built, society
from trainers.tuning.likelihood import Likelihood

JUDGED = Verdict(
    answer="1",
    stop_reason="verdict",
    aggregator="moderator",
    details={"side": "affirmative", "reason": "it <b>counted</b>"},
)


def moderated() -> Debate:
    nodes = list(MODERATED)
    nodes[2] = ("0.moderate.mod", "m", nodes[2][2] | {"answer": Answer()})
    said = Answer(None, "json", details={"preference": "<i>No</i>"})
    nodes[3] = ("0.moderate.mod~1", "m", nodes[3][2] | {"answer": said})
    return built(nodes, "0.affirm.aff saw 0.oppose.neg,0.oppose.neg saw 0.moderate.mod", JUDGED)


def shown(found: Statistics) -> dict[str, Table]:
    (view,) = stage_views([("a stage", found)])
    return {table.title: table for group in view.groups for table in group}


def texts(table: Table) -> list[list[str]]:
    return [[name, *(cell.text for cell in cells)] for name, cells in table.rows]


def page_text(data: ReportData) -> str:
    return " ".join(html.unescape(re.sub("<[^>]*>", " ", render_report(data).partition("<main>")[2])).split())


COUNTS = Statistics(
    num_debates=4,
    num_failures=2,
    moves={
        1: {"ada": {"right > wrong": 1, "right > right": 3}, "bo": {"wrong > other wrong": 2, "wrong > unparsed": 2}},
        2: {"ada": {"wrong > right": 1}},
    },
    stances={"ada": Stance(contested=4, kept=1)},
    influence={"ada": {"bo": Influence(credit=1.5, right=0.5, chances=3)}},
    sides={"negative": Score(played=3, won=1), "affirmative": Score(played=3, won=2)},
    side_models={"affirmative": {"big": Score(played=2, won=2)}, "negative": {"small": Score(played=2)}},
    matchups={"big": {"big": {"small": {"affirmative": 2}}}},
    backing_roles={"critic": Score(played=8, won=6)},
    stop_reasons={"no_replies": 1, "rounds": 3},
    rounds_used={1: 1, 3: 3},
    roles={"critic": Spend(calls=8, prompt_tokens=1000, completion_tokens=60, unparsed=2, second_tries=1)},
    openings=4,
    opening_tokens=20,
)


def test_likelihoods_are_a_matrix_where_a_stage_was_scored() -> None:
    found = [
        Likelihood(speaker="ada v1", reader=reader, nll=nll, kl=kl, tokens=9)
        for reader, nll, kl in (("ada v1", 1.0, 0.0), ("base", 1.5, 0.25))
    ]
    (view,) = stage_views([("a stage", statistics([society(2, 2)]))], {"a stage": found})
    table = next(table for group in view.groups for table in group if table.title.startswith("How likely"))
    assert table.head == ("Replies of", "under ada v1", "under base") and texts(table) == [["ada v1", "1.00", "1.50"]]
    assert table.rows[0][1][1].small == "KL 0.250"


def test_flips_are_told_by_state_round_and_agent() -> None:
    tables = shown(COUNTS)
    moves = tables["From one answer to the next"]
    assert moves.head == ("From", "to right", "to wrong", "to other wrong", "to unparsed")
    assert texts(moves) == [
        ["right", "75.0%", "25.0%", "0.0%", "0.0%"],
        ["wrong", "20.0%", "0.0%", "40.0%", "40.0%"],
    ]
    assert moves.rows[1][1][2].heat == 0.4
    assert texts(tables["Flips by round"]) == [
        ["1", "8", "62.5%", "1", "0", "2", "2"],
        ["2", "1", "100.0%", "0", "1", "0", "0"],
    ]
    assert texts(tables["Flips by agent"]) == [
        ["ada", "5", "40.0%", "1", "1", "0", "0", "25.0%"],
        ["bo", "4", "100.0%", "0", "0", "2", "2", "–"],
    ]


def test_who_convinced_whom_is_a_matrix() -> None:
    table = shown(COUNTS)["Who convinced whom"]
    assert table.head == ("Convinced", "bo") and texts(table) == [["ada", "1.5 of 3"]]
    assert (table.rows[0][1][0].small, table.rows[0][1][0].heat) == ("0.5 to right", 0.5)
    many = {f"a{n:02}": {f"b{n:02}": Influence(chances=1)} for n in range(MAX_NAMES + 2)}
    large = shown(Statistics(num_debates=1, influence=many))["Who convinced whom"]
    assert (len(large.rows), len(large.head), large.left_out) == (MAX_NAMES, MAX_NAMES + 1, 4)


def test_winners_are_told_by_side_and_model() -> None:
    tables = shown(COUNTS)
    assert texts(tables["Which side won"]) == [["affirmative", "50.0%"], ["negative", "25.0%"], ["no side", "25.0%"]]
    assert texts(tables["Sides crossed with models"]) == [["affirmative", "100.0%", "–"], ["negative", "–", "0.0%"]]
    assert tables["Who judged whom"].head == ("Judge", "First", "Second", "affirmative won")
    assert texts(tables["Who judged whom"]) == [["big", "big", "small", "2"]]
    assert texts(tables["Whose answer the verdict was"]) == [["role critic", "75.0%"]]
    assert (
        not {"Which side won", "Sides crossed with models", "Who judged whom"}
        & shown(statistics([society(2, 2)])).keys()
    )


def test_ends_and_spending_are_told() -> None:
    tables = shown(COUNTS)
    assert texts(tables["How debates ended"]) == [
        ["by rounds", "75.0%"],
        ["by no replies", "25.0%"],
        ["after 1 round", "25.0%"],
        ["after 3 rounds", "75.0%"],
    ]
    assert texts(tables["Calls and tokens by role"]) == [["critic", "8", "1,000", "60", "100.0%", "2", "1"]]
    (view,) = stage_views([("a stage", COUNTS)])
    assert view.summary == (
        "4 debates; 2 replies and 15 generated tokens each, 3.0 times the tokens of one opening answer; "
        "2 asks brought no reply."
    )


def test_agreement_is_told_by_round() -> None:
    both = [society(2, 1), built([("0.answer.0", "a", {}), ("0.answer.1", "b", {"answer": Answer("2", "said")})])]
    table = shown(statistics(both))["Agreement by round"]
    assert texts(table) == [["0", "2", "50.0%", "75.0%", "50.0%", "1.50", "0.50", "0.00"]]


def test_several_stages_stand_side_by_side() -> None:
    assert overview([("only", COUNTS)]) is None
    assert stage_views([("empty", Statistics())]) == []
    table = overview([("before", COUNTS), ("empty", Statistics()), ("after", statistics([society(2, 2)]))])
    assert table is not None
    assert texts(table) == [
        ["before", "4", "–", "1", "1", "25.0%", "3.0 ×"],
        ["after", "1", "100.0%", "0", "0", "–", "–"],
    ]


def test_the_page_tells_how_debates_went() -> None:
    text = page_text(ReportData(run_name="r", statistics=(("before training", COUNTS),)))
    for words in ("How the debates went", "before training", "Who convinced whom", "1.5 of 3 0.5 to right", "critic"):
        assert words in text
    assert "How the debates went" not in page_text(ReportData(run_name="r"))


def test_a_moderated_debate_is_told_step_by_step() -> None:
    page = render_report(ReportData(run_name="r", transcripts=(("", moderated()),)))
    text = page_text(ReportData(run_name="r", transcripts=(("", moderated()),)))
    for words in (
        "affirmative · affirm",
        "negative · oppose",
        "saw m , round 0, affirm",
        "moderator · moderate could not be read",
        "moderator · moderate, asked again names no answer",
        "preference <i>No</i>",
        "by moderator; ended by verdict.",
        "reason it <b>counted</b>",
        "last turn before the verdict",
    ):
        assert words in text
    assert "Vote of this round" not in text and "No vote" not in text and " votes" not in text
    assert "<b>" not in page and "<i>" not in page
    assert "everyone alone" not in text  # the negative had seen the affirmative


def test_votes_are_told_where_votes_decide() -> None:
    text = page_text(ReportData(run_name="r", transcripts=(("", society(2, 2)),)))
    assert text.count("Vote of this round") == 2 and "by majority vote, 0 of 2 votes; ended by rounds." in text
    assert "Round 0: everyone alone" in text and "Round 1: everyone alone" not in text


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    manifest = Manifest(id="r", kind="eval", name="n", fingerprint="f", num_arenas=1, recipe={}, recipe_path="r.yaml")
    folder = RunFolder.create(tmp_path / "run", manifest)
    counts = dict.fromkeys(("replies", "prompt_tokens", "completion_tokens", "cached_tokens"), 0)
    done = {"debates": 1, "set_aside": [], "wall_s": 1.0, "new": counts} | counts
    folder.mark_done("eval-0", done)
    folder.mark_done("debate-1", done)
    folder.release()
    return folder


def test_statistics_are_kept_beside_the_results_and_found_again(run: RunFolder) -> None:
    found = [society(2, 2)]
    keep_statistics(run, "eval-0", found)
    (run.path / "results" / "eval-0.json").write_bytes(msgspec.json.encode(evaluate(found)))
    data = collect(run)
    assert [label for label, _ in data.evaluations] == ["as they are"]
    # of debate-1 nothing was kept, and its journals hold nothing
    assert data.statistics == (
        ("as they are", statistics(found)),
        ("debates of iteration 1", Statistics()),
    )
