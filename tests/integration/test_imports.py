"""What another system's debates can be used for: import, train, report, export, in processes of their own."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.command import Moot, Process, RunOnDisk, check_clean, moot_in
from trainers.feed import Feed
from trainers.sft import RESULT_NAME

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

RIGHT, WRONG, NONE = 0, 1, 2
OPENINGS_AND_LASTS = {  # numbers of the problems -> what agents 0, 1, 2 say at first, and in the end
    range(1, 7): ((RIGHT, RIGHT, RIGHT), (RIGHT, RIGHT, RIGHT)),
    range(7, 10): ((RIGHT, RIGHT, WRONG), (RIGHT, RIGHT, RIGHT)),
    range(10, 12): ((RIGHT, WRONG, WRONG), (WRONG, WRONG, WRONG)),  # consensus on what gold calls wrong
    range(12, 13): ((RIGHT, RIGHT, RIGHT), (NONE, NONE, NONE)),  # no consensus: nothing can be read in the end
}
ROWS = {"agent-0": 6 + 3, "agent-1": 6 + 3 + 2, "agent-2": 6 + 2}


def said(number: int, kind: int) -> str:
    return "I cannot say." if kind == NONE else f"- add them\n\\boxed{{{2 * number + kind}}}"


def maft_file() -> dict[str, Any]:
    """Twelve sums, three agents, two rounds."""
    found = {}
    for numbers, (openings, lasts) in OPENINGS_AND_LASTS.items():
        for number in numbers:
            question = f"What is {number} + {number}?"
            chats = [
                [
                    {"role": "user", "content": question},
                    {"role": "assistant", "content": said(number, first)},
                    {"role": "user", "content": "Others say:\n" + "\n".join(said(number, kind) for kind in openings)},
                    {"role": "assistant", "content": said(number, last)},
                ]
                for first, last in zip(openings, lasts, strict=True)
            ]
            found[question] = [chats, f"It is \\boxed{{{2 * number}}}."]
    return found


@pytest.fixture(scope="module")
def moot(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Moot]:
    folder = tmp_path_factory.mktemp("imports")
    (folder / "gsm_3_2.json").write_text(json.dumps(maft_file()))
    with moot_in(folder) as moot:
        imported = done(moot, "import", "maft", "gsm_3_2.json", "--run-dir", "runs/maft")
        assert imported.outcome()["debates"] == 12
        yield moot


@pytest.fixture(scope="module")
def trained(moot: Moot, tiny_model: Path) -> dict[str, Any]:
    """What `moot train` printed of the import."""
    return done(
        moot,
        "train",
        "runs/maft",
        f"train.base_model={tiny_model}",
        "sft.epochs=1",
        "sft.rank=4",
        "sft.max_length=512",
        "train.threads=1",
    ).outcome()


def done(moot: Moot, *arguments: str) -> Process:
    process = moot(*arguments, "--json")
    assert process.wait() == 0, process.stderr
    check_clean(process.stderr)
    return process


def test_each_agent_learns_from_those_of_its_openings_that_agree(moot: Moot, trained: dict[str, Any]) -> None:
    assert (trained["rows"], trained["warnings"]) == (ROWS, [])
    names = [f"{agent}@maft-v1" for agent in ROWS]
    assert trained["adapters"] == names
    run = RunOnDisk(moot.folder / "runs" / "maft")
    records = run.json("adapters/registry.json")
    assert {record["name"]: record["rows"] for record in records} == dict(zip(names, ROWS.values(), strict=True))
    for agent, rows in ROWS.items():
        result = run.json(f"adapters/{agent}/v1/{RESULT_NAME}")
        assert (result["rows_seen"], result["refused"]) == (rows, 0)


def test_the_rows_exported_are_those_trained_on(moot: Moot, trained: dict[str, Any]) -> None:
    assert done(moot, "export", "trl-sft", "runs/maft", "-o", "sft.jsonl").outcome()["rows"] == sum(ROWS.values())
    exported = Counter((moot.folder / "sft.jsonl").read_text().splitlines())
    feed = Feed(moot.folder / "runs" / "maft" / "train" / "recorded-1" / "feed", lock_wait_s=30.0)
    try:
        examples = [row.example for agent in ROWS for row in feed.read(agent, 0, 100).rows]
    finally:
        feed.close()
    learned = [
        {
            "prompt": [{"role": message.role, "content": message.text} for message in example.prompt],
            "completion": [{"role": "assistant", "content": example.completion}],
        }
        for example in examples
    ]
    assert Counter(json.dumps(row) for row in learned) == exported


def test_a_report_is_made_of_it(moot: Moot, trained: dict[str, Any]) -> None:
    assert done(moot, "report", "runs/maft").outcome()["report"] == "runs/maft/report.html"
    page = (moot.folder / "runs" / "maft" / "report.html").read_text()
    assert "80.6%" in page  # openings that gold calls right: 6 * 3 + 3 * 2 + 2 * 1 + 1 * 3 = 29 of 36
    assert "75.0%" in page  # the final votes: 9 of 12
