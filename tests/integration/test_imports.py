"""What another system's debates can be used for: import, train, report, export, each by its command."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.integration.command import RunOnDisk, command_here
from trainers.record.feed import Feed
from trainers.tuning.sft_settings import RESULT_NAME

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1500),
    pytest.mark.filterwarnings("default"),  # Ray and transformers deprecate parts of their own
]

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
def run(tmp_path_factory: pytest.TempPathFactory) -> RunOnDisk:
    """The import."""
    folder = tmp_path_factory.mktemp("imports")
    (folder / "gsm_3_2.json").write_text(json.dumps(maft_file()))
    imported = command_here("import", "maft", folder / "gsm_3_2.json", "--run-dir", folder / "maft")
    assert imported["debates"] == 12
    return RunOnDisk(folder / "maft")


@pytest.fixture(scope="module")
def trained(run: RunOnDisk, tiny_model: Path, local_ray: Any) -> dict[str, Any]:
    """What `moot train` printed of the import."""
    return command_here(
        "train",
        run.path,
        f"train.base_model={tiny_model}",
        "sft.epochs=1",
        "sft.rank=4",
        "sft.max_length=512",
        "train.threads=1",
    )


def test_each_agent_learns_from_those_of_its_openings_that_agree(run: RunOnDisk, trained: dict[str, Any]) -> None:
    assert (trained["rows"], trained["warnings"]) == (ROWS, [])
    names = [f"{agent}@maft-v1" for agent in ROWS]
    assert trained["adapters"] == names
    records = run.json("adapters/registry.json")
    assert {record["name"]: record["rows"] for record in records} == dict(zip(names, ROWS.values(), strict=True))
    for agent, rows in ROWS.items():
        result = run.json(f"adapters/{agent}/v1/{RESULT_NAME}")
        assert (result["rows_seen"], result["refused"]) == (rows, 0)


def test_the_rows_exported_are_those_trained_on(run: RunOnDisk, trained: dict[str, Any], tmp_path: Path) -> None:
    told = command_here("export", "trl-sft", run.path, "-o", tmp_path / "sft.jsonl")
    assert told["rows"] == sum(ROWS.values())
    exported = Counter((tmp_path / "sft.jsonl").read_text().splitlines())
    feed = Feed(run.path / "train" / "recorded-1" / "feed", lock_wait_s=30.0)
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


def test_a_report_is_made_of_it(run: RunOnDisk, trained: dict[str, Any]) -> None:
    assert command_here("report", run.path)["report"] == str(run.path / "report.html")
    page = (run.path / "report.html").read_text()
    assert "80.6%" in page  # openings that gold calls right: 6 * 3 + 3 * 2 + 2 * 1 + 1 * 3 = 29 of 36
    assert "75.0%" in page  # the final votes: 9 of 12
