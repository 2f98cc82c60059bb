"""Datasets by name: each publisher's rows become tasks that can be graded, from files or folders, with no network."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from engine.check import check_recipe
from engine.data.datasets_builtin import DATASETS
from engine.data.datasets_hub import HubSource
from engine.data.task_rows import check_format
from engine.data.tasks import load_split
from protocols.answer import grade, parse_answer
from protocols.errors import ConfigError, TaskError
from protocols.task import Task
from tests.engine.data.test_media import png

ROOT = Path(__file__).resolve().parent.parent.parent.parent


@pytest.fixture(autouse=True)
def no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOOT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def write(path: Path, rows: Any) -> str:
    lines = path.suffix == ".jsonl"
    path.write_text("\n".join(map(json.dumps, rows)) if lines else json.dumps(rows), encoding="utf-8")
    return str(path)


def loaded(dataset: str, path: str, **settings: Any) -> list[Task]:
    """All tasks of a file, in the file's order where their questions are numbered."""
    tasks = HubSource(dataset=dataset, path=path, only="test", **settings).load().test
    return sorted(tasks, key=lambda task: task.question)


IMAGE = {"bytes": None, "path": "picture.png"}

ROWS: dict[str, tuple[list[dict[str, Any]], list[dict[str, Any]]]] = {
    "gsm8k": (
        [{"question": "1. How many pens?", "answer": "He has 500+500=<<500+500=1000>>1000.\n#### 1,000"}],
        [{"gold": ("1,000",), "answer_format": "number"}],
    ),
    "math": (
        [
            {"problem": "1. Solve.", "level": "Level 5", "type": "Algebra", "solution": r"So $x=\boxed{\frac{1}{2}}$."},
            {
                "problem": "2. Solve.",
                "level": "Level ?",
                "type": "Geometry",
                "solution": r"It is $\boxed 2.5$, or \boxed 7.",
            },
        ],
        [
            {"gold": (r"\frac{1}{2}",), "answer_format": "math", "details": {"level": "5", "subject": "Algebra"}},
            {"gold": ("7",), "details": {"level": "?", "subject": "Geometry"}},
        ],
    ),
    "math500": (
        [
            {
                "problem": "1. Solve.",
                "solution": "..",
                "answer": r"\left( 3, \frac{\pi}{2} \right)",
                "subject": "Precalculus",
                "level": 2,
                "unique_id": "test/precalculus/807.json",
            }
        ],
        [
            {
                "gold": (r"\left( 3, \frac{\pi}{2} \right)",),
                "answer_format": "math",
                "details": {"level": "2", "subject": "Precalculus", "source_id": "test/precalculus/807.json"},
            }
        ],
    ),
    "mmlu": (
        [{"question": "1. Which?", "subject": "anatomy", "choices": ["4", "1", "2", "3"], "answer": 2}],
        [
            {
                "gold": ("C",),
                "choices": ("4", "1", "2", "3"),
                "answer_format": "choice",
                "details": {"subject": "anatomy"},
            }
        ],
    ),
    "mmlu_pro": (
        [
            {
                "question_id": 70,
                "question": "1. Which?",
                "options": list("abcdefghij"),
                "answer": "I",
                "answer_index": 8,
                "cot_content": "",
                "category": "business",
                "src": "ori_mmlu-business_ethics",
            }
        ],
        [{"gold": ("I",), "choices": tuple("abcdefghij"), "answer_format": "choice"}],
    ),
    "arc_challenge": (
        [
            {
                "id": "Mercury_7",
                "question": "1. Which?",
                "choices": {"text": ["air", "ice", "fog", "dew"], "label": ["1", "2", "3", "4"]},
                "answerKey": "3",
            },
            {
                "id": "Mercury_8",
                "question": {
                    "stem": "2. Which?",
                    "choices": [{"text": "x", "label": "A"}, {"text": "y", "label": "B"}],
                },
                "answerKey": "B",
            },
        ],
        [
            {"gold": ("C",), "choices": ("air", "ice", "fog", "dew"), "details": {"source_id": "Mercury_7"}},
            {"gold": ("B",), "choices": ("x", "y")},
        ],
    ),
    "strategyqa": (
        [
            {"qid": "a", "term": "t", "description": "d", "question": "1. Can it?", "answer": True, "facts": "f"},
            {"qid": "b", "term": "t", "description": "d", "question": "2. Can it?", "answer": False, "facts": "f"},
        ],
        [{"gold": ("yes",), "answer_format": "yes_no"}, {"gold": ("no",)}],
    ),
    "commonsenseqa": (
        [
            {
                "id": "q",
                "question": "1. Where?",
                "question_concept": "pen",
                "choices": {"label": list("ABCDE"), "text": ["bank", "shop", "mall", "desk", "sea"]},
                "answerKey": "D",
            },
            {
                "id": "r",
                "question": "2. Where?",
                "question_concept": "pen",
                "choices": {"label": list("ABCDE"), "text": ["bank", "shop", "mall", "desk", "sea"]},
                "answerKey": "",
            },
        ],
        [{"gold": ("D",), "choices": ("bank", "shop", "mall", "desk", "sea")}, {"gold": ()}],
    ),
    "ecqa": (
        [
            {
                "q_no": "1",
                "q_concept": "pen",
                "q_text": "1. Where?",
                "q_op1": "bank",
                "q_op2": "shop",
                "q_op3": "mall",
                "q_op4": "desk",
                "q_op5": "sea",
                "q_ans": "shop",
                "taskA_pos": "..",
            }
        ],
        [{"gold": ("B",), "choices": ("bank", "shop", "mall", "desk", "sea"), "answer_format": "choice"}],
    ),
    "bbh_multistep_arithmetic_two": (
        [{"input": "((-1 + 2) * 3) =", "target": "3"}],
        [{"question": "((-1 + 2) * 3) =", "gold": ("3",), "answer_format": "number"}],
    ),
    "addsub": (
        [{"iIndex": 1, "sQuestion": "1. How many are left ?", "lEquations": ["X=9-2"], "lSolutions": [7.0]}],
        [{"gold": ("7.0",), "answer_format": "number", "details": {"source_id": "1"}}],
    ),
    "ciar": (
        [
            {
                "question": "1. What share?",
                "answer": ["75%", "0.75"],
                "explanation": "so",
                "incorrect answer": ["90%"],
                "incorrect explanation": "thus",
            }
        ],
        [
            {
                "gold": ("75%", "0.75"),
                "details": {"explanation": "so", "incorrect_answers": '["90%"]', "incorrect_explanation": "thus"},
            }
        ],
    ),
    "mmmu": (
        [
            {
                "id": "validation_Art_1",
                "question": "1. Which of <image 1> and <image 2>?",
                "options": "['<image 1>', \"it's <image 2>\"]",
                "answer": "B",
                "question_type": "multiple-choice",
                "image_1": IMAGE,
                "image_2": IMAGE,
                "image_3": None,
                "subfield": "Drawing",
                "topic_difficulty": "Easy",
            },
            {
                "id": "v2",
                "question": "2. How much? <image 1>",
                "options": "[]",
                "answer": "['8.5', '17/2']",
                "image_1": IMAGE,
            },
            {"id": "t1", "question": "3. Which? <image 1>", "options": "['a', 'b']", "answer": "?", "image_1": IMAGE},
        ],
        [
            {"gold": ("B",), "choices": ("<image 1>", "it's <image 2>"), "answer_format": "choice"},
            {"gold": ("8.5", "17/2"), "choices": (), "answer_format": "number"},
            {"gold": (), "choices": ("a", "b")},
        ],
    ),
    "mathvista": (
        [
            {
                "pid": "1",
                "question": "1. What is the mean?",
                "decoded_image": IMAGE,
                "image": "images/1.jpg",
                "choices": None,
                "unit": None,
                "precision": 1.0,
                "answer": "1.2",
                "question_type": "free_form",
                "answer_type": "float",
                "metadata": {"category": "math-targeted-vqa", "task": "textbook question answering"},
            },
            {
                "pid": "2",
                "question": "2. The slope is ____ that one",
                "decoded_image": IMAGE,
                "choices": ["larger than", "equal to"],
                "precision": None,
                "answer": "equal to",
                "question_type": "multi_choice",
                "answer_type": "text",
                "metadata": {},
            },
        ],
        [
            {
                "gold": ("1.2",),
                "answer_format": "number",
                "tolerance": 0.05,
                "details": {"task": "textbook question answering", "category": "math-targeted-vqa", "source_id": "1"},
            },
            {"gold": ("B",), "choices": ("larger than", "equal to"), "answer_format": "choice", "tolerance": 0.0},
        ],
    ),
    "cmmmu": (
        [
            {
                "id": 1,
                "type": "选择",
                "question": '1. 如图<img="0001_1.png">, 哪个?',
                "option1": "甲",
                "option2": "乙",
                "option3": "丙",
                "option4": "-",
                "image_1": IMAGE,
                "image_1_filename": "0001_1.png",
                "answer": "C",
                "category": "艺术与设计",
                "subcategory": "设计",
            },
            {"id": 2, "type": "判断", "question": "2. 对吗?", "option1": "-", "image_1": IMAGE, "answer": "错"},
            {"id": 3, "type": "填空", "question": "3. 多少?", "option1": "-", "image_1": IMAGE, "answer": "12"},
            {
                "id": 4,
                "type": "选择",
                "question": "4.",
                "option1": "x",
                "option2": "y",
                "image_1": IMAGE,
                "answer": "AB",
            },
        ],
        [
            {"question": "1. 如图<image 1>, 哪个?", "gold": ("C",), "choices": ("甲", "乙", "丙")},
            {"gold": ("B",), "choices": ("对", "错"), "answer_format": "choice"},
            {"gold": ("12",), "choices": (), "answer_format": "number"},
        ],
    ),
    "m2d": (
        [
            {
                "data_domain": "Science",
                "image_name": ["picture.png", "picture.png"],
                "question_id": "validation_Physics_3",
                "question_type": "multi_choice",
                "question": "1. Which way?",
                "choices": ["8", "B", "A "],
                "answer": "A ",
            },
            {
                "data_domain": "vqa",
                "image_name": ["picture.png"],
                "question_id": "387",
                "question_type": "open",
                "question": "2. What share?",
                "choices": [],
                "answer": "100",
            },
        ],
        [
            {"gold": ("C",), "details": {"domain": "Science", "source_id": "validation_Physics_3"}},
            {"gold": ("100",), "answer_format": "number"},
        ],
    ),
}
for _task in ("penguins_in_a_table", "date_understanding", "reasoning_about_colored_objects"):
    ROWS[f"bbh_{_task}"] = (
        [{"input": "1. Of (A) and such: which?\nOptions:\n(A) 12/25/1937\n(B) B. Vincent", "target": "(B)"}],
        [
            {
                "question": "1. Of (A) and such: which?",
                "choices": ("12/25/1937", "B. Vincent"),
                "gold": ("B",),
                "answer_format": "choice",
            }
        ],
    )


@pytest.mark.parametrize("name", ROWS)
def test_rows_of_a_publisher_become_tasks(tmp_path: Path, name: str) -> None:
    (tmp_path / "picture.png").write_bytes(png())
    rows, wanted = ROWS[name]
    content: Any = {"canary": "..", "examples": rows} if DATASETS[name].items else rows
    tasks = loaded(name, write(tmp_path / "rows.json", content))
    assert len(tasks) == len(wanted)
    for task, fields in zip(tasks, wanted, strict=True):
        assert {field: getattr(task, field) for field in fields} == fields
        assert task.dataset == name and task.id.startswith(f"{name}-")
        assert len(task.images) == task.question.count("<image") or name in ("mathvista", "cmmmu", "m2d")
        assert bool(task.images) == bool(DATASETS[name].fields.images)


def test_every_dataset_is_tried() -> None:
    assert {*ROWS, "commonmt"} == {*DATASETS}


@pytest.mark.parametrize("name", DATASETS)
def test_every_dataset_has_a_grader_and_a_place_in_the_docs(name: str) -> None:
    check_format(DATASETS[name].fields.answer_format)
    page = (ROOT / "docs" / "tasks.md").read_text(encoding="utf-8")
    table = page[page.index("| `dataset` |") :]
    line = next(line for line in table.splitlines() if line.startswith(f"| `{name}` |"))
    assert DATASETS[name].hub in line
    assert DATASETS[name].licence in line


@pytest.mark.parametrize(
    ("name", "reply", "right"),
    [
        ("gsm8k", r"So the answer is \boxed{1000}.", True),
        ("math", r"So \boxed{\frac{1}{2}}", True),
        ("mmlu", "The answer is (C)", True),
        ("mmlu", "The answer is (B)", False),
        ("strategyqa", "The answer is yes.", True),
        ("mathvista", "The answer is 1.24.", True),
        ("mathvista", "The answer is 1.3.", False),
        ("ciar", "The answer is 3/4.", True),
        ("arc_challenge", "The answer is (C)", True),
        ("mmmu", "The answer is (B)", True),
        ("m2d", "The answer is (C)", True),
        ("bbh_date_understanding", "The answer is (A)", False),
    ],
)
def test_tasks_can_be_graded(tmp_path: Path, name: str, reply: str, right: bool) -> None:
    (tmp_path / "picture.png").write_bytes(png())
    rows = ROWS[name][0]
    task = loaded(name, write(tmp_path / "rows.json", {"examples": rows} if DATASETS[name].items else rows))[0]
    assert grade(parse_answer(reply, task.answer_format, task.choices), task) is right


def test_lines_of_two_files_are_translations(tmp_path: Path) -> None:
    (tmp_path / "a.zh").write_text("吃掉敌人一个师。\n他下水了。\n吃掉敌人一个师。\n", encoding="utf-8")
    (tmp_path / "a.en").write_text("Destroy a division.\nHe fell.\nWipe out a division.\n", encoding="utf-8")
    tasks = loaded("commonmt", str(tmp_path / "a.zh"), reference_path=str(tmp_path / "a.en"))
    assert [task.gold for task in tasks] == [("He fell.",), ("Destroy a division.", "Wipe out a division.")]
    assert tasks[0].details == {"line": "2", "source_language": "Chinese", "target_language": "English"}
    (tmp_path / "a.tsv").write_text("吃掉敌人一个师。\tDestroy a division.\n", encoding="utf-8")
    assert loaded("commonmt", str(tmp_path / "a.tsv"))[0].gold == ("Destroy a division.",)


def gsm8k(count: int, start: int = 0) -> list[dict[str, str]]:
    return [{"question": f"{n} + 1?", "answer": f"...\n#### {n + 1}"} for n in range(start, start + count)]


def test_one_file_is_cut_and_two_are_kept_apart(tmp_path: Path) -> None:
    one, two = write(tmp_path / "train.jsonl", gsm8k(30)), write(tmp_path / "test.jsonl", gsm8k(10, start=30))
    split = HubSource(dataset="gsm8k", path=one, train=20, test=5, seed=1).load()
    assert (len(split.train), len(split.test)) == (20, 5)
    split = HubSource(dataset="gsm8k", path=one, test_path=two, test=10).load()
    assert (len(split.train), len(split.test)) == (30, 10)
    with pytest.raises(TaskError, match=r"the test side of .* holds 10 tasks for tasks.test=11; lower it"):
        HubSource(dataset="gsm8k", path=one, test_path=two, test=11).load()


def test_levels_and_subjects_are_chosen(tmp_path: Path) -> None:
    rows = [
        {"problem": f"{n}?", "level": f"Level {n % 5 + 1}", "type": "Algebra", "solution": rf"\boxed{{{n}}}"}
        for n in range(20)
    ]
    path = write(tmp_path / "math.json", rows)
    tasks = loaded("math", path, where={"level": [1, "2", 3.0], "type": "algebra"})
    assert len(tasks) == 12 and {task.details["level"] for task in tasks} == {"1", "2", "3"}
    with pytest.raises(TaskError, match=r"math.json: tasks.where leaves none of its 20 rows; ask for less"):
        loaded("math", path, where={"level": 6})
    with pytest.raises(TaskError, match=r"no row has 'subject', which tasks.where asks for; they have: problem, level"):
        loaded("math", path, where={"subject": "Algebra"})


def test_a_recipe_may_override_a_configuration(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"q": "1 + 1?", "answer": "#### 2", "kind": "sum"}])
    task = loaded("gsm8k", path, question="q", answer_format="text", details={"kind": "kind"}, tolerance=0.5)[0]
    assert (task.question, task.gold, task.answer_format) == ("1 + 1?", ("2",), "text")
    assert (task.details, task.tolerance) == ({"kind": "sum"}, 0.5)
    with pytest.raises(ValueError, match="answer_format='numbr' must be one of"):
        HubSource(dataset="gsm8k", answer_format="numbr")


def test_images_can_be_left_out(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", ROWS["m2d"][0])
    assert all(task.images == () for task in loaded("m2d", path, images=""))
    with pytest.raises(TaskError, match=r"a.json, item 1: 'image_name': image 'picture.png' cannot be read"):
        loaded("m2d", path)


def test_any_folder_of_the_hubs_making_will_do(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    (tmp_path / "mine" / "data").mkdir(parents=True)
    for split, start in (("train", 0), ("test", 8)):
        table = datasets.Dataset.from_list([{"prompt": f"{n}?", "target": n} for n in range(start, start + 8)])
        table.to_parquet(tmp_path / "mine" / "data" / f"{split}-00000-of-00001.parquet")
    both = datasets.DatasetDict({"train": table, "dev": table})
    both.save_to_disk(tmp_path / "saved")
    fields = {"question": "prompt", "answer": "target", "answer_format": "number"}
    copied = HubSource(dataset=str(tmp_path / "mine"), **fields).load()  # type: ignore[arg-type]
    assert {task.question for task in copied.test} == {f"{n}?" for n in range(8, 16)}
    assert {task.question for task in copied.train} == {f"{n}?" for n in range(8)}
    assert copied.test[0].dataset == "mine"
    saved = HubSource(dataset="mine", path=str(tmp_path / "saved"), only="test", test_split="dev", **fields).load()  # type: ignore[arg-type]
    assert len(saved.test) == 8
    with pytest.raises(ConfigError, match="has the splits train, dev, not 'test'"):
        HubSource(dataset="mine", path=str(tmp_path / "saved"), **fields).load()  # type: ignore[arg-type]


def test_a_copied_repository_has_its_configurations(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    copy, lines = tmp_path / "hendrycks_math", ["---", "configs:"]
    for number, subject in enumerate(("algebra", "geometry")):
        lines += [f"- config_name: {subject}", "  data_files:"]
        for split in ("train", "test"):
            (copy / subject).mkdir(parents=True, exist_ok=True)
            row = {
                "problem": f"{subject} {split}?",
                "level": f"Level {number}",
                "type": subject,
                "solution": r"\boxed{1}",
            }
            datasets.Dataset.from_list([row]).to_parquet(copy / subject / f"{split}.parquet")
            lines += [f"  - split: {split}", f"    path: {subject}/{split}.parquet"]
    (copy / "README.md").write_text("\n".join([*lines, "---", ""]))
    found = HubSource(dataset="math", path=str(copy), config=("algebra", "geometry")).load()
    assert {task.question for task in found.train} == {"algebra train?", "geometry train?"}
    assert {task.question for task in found.test} == {"algebra test?", "geometry test?"}
    chosen = HubSource(dataset="math", path=str(copy), config="geometry", train_split="test", test_split="train").load()
    assert [task.question for task in chosen.train] == ["geometry test?"]
    with pytest.raises(ConfigError, match=r"tasks.dataset='math': .*hendrycks_math algebra dev cannot be loaded"):
        HubSource(dataset="math", path=str(copy), config="algebra", train_split="dev").load()


def test_the_hub_is_asked_for_what_the_configuration_says(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    asked: list[tuple[object, ...]] = []

    def load_dataset(path: str, config: str | None, *, split: str, revision: str | None) -> Any:
        asked.append((path, config, split, revision))
        return datasets.Dataset.from_list([{"question": f"{split} {config}?", "answer": "#### 1"}])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    split = HubSource(dataset="gsm8k", revision="abc").load()
    assert asked == [("openai/gsm8k", "main", "train", "abc"), ("openai/gsm8k", "main", "test", "abc")]
    assert [task.question for task in split.train + split.test] == ["train main?", "test main?"]
    asked.clear()
    assert HubSource(dataset="gsm8k", only="test").load().train == []
    assert asked == [("openai/gsm8k", "main", "test", None)]  # the other side is not even read


def test_images_of_a_saved_dataset_keep_their_bytes(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    pytest.importorskip("PIL")
    rows = [{"q": f"{n}? <image 1>", "a": n, "image_1": {"bytes": png(300, 240, n), "path": None}} for n in range(6)]
    features = datasets.Features(
        {"q": datasets.Value("string"), "a": datasets.Value("int64"), "image_1": datasets.Image()}
    )
    datasets.Dataset.from_list(rows, features=features).save_to_disk(tmp_path / "saved")
    tasks = loaded("mine", str(tmp_path / "saved"), question="q", answer="a", images="image_1")
    assert [(image.width_px, image.media_type) for task in tasks for image in task.images] == [(300, "image/png")] * 6
    assert len({task.images[0].sha256 for task in tasks}) == 6
    table = datasets.load_from_disk(tmp_path / "saved")
    table.to_parquet(tmp_path / "a.parquet")
    assert loaded("mine", str(tmp_path / "a.parquet"), question="q", answer="a", images="image_1") == tasks


def test_without_a_network_the_way_out_is_one_sentence() -> None:
    """In a process of its own: the hub's libraries read how they are set when they are first imported."""
    code = "from engine.data.datasets_hub import HubSource\nHubSource(dataset='gsm8k').load()"
    env = os.environ | {"PYTHONPATH": str(ROOT), "HF_ENDPOINT": "https://hub.invalid"}
    env.pop("HF_HUB_OFFLINE")
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=100, check=False
    )
    said = done.stderr.strip().splitlines()[-1]
    assert "tasks.dataset='gsm8k': openai/gsm8k main train cannot be loaded: " in said
    assert "give tasks.path the dataset's file or folder, or set HF_HOME to a cache" in said


def test_a_dataset_that_is_on_no_hub_needs_its_file() -> None:
    with pytest.raises(ConfigError, match=r"tasks.dataset='ciar' is on no hub we know of; give its file as tasks.path"):
        load_split(HubSource(dataset="ciar"))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"dataset": " "}, "dataset is empty; name one of gsm8k, math"),
        ({"dataset": "gsm8k", "train": -1}, "train=-1 must not be below 0"),
        ({"dataset": "gsm8k", "test_path": "b"}, "test_path and reference_path go with path"),
        ({"dataset": "x", "path": "a", "test_path": "b", "reference_path": "c"}, "leave test_path out"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        HubSource(**settings)


def test_the_digest_changes_with_what_is_asked(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    source = HubSource(dataset="gsm8k", path=write(path, gsm8k(10)))
    first = source.digest()
    write(path, list(reversed(gsm8k(10))))
    assert source.digest() == first
    write(path, gsm8k(11))
    assert source.digest() != first


def test_a_recipe_names_a_dataset(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", gsm8k(30))
    recipe = {
        "name": "t",
        "tasks": {"source": "hub", "dataset": "gsm8k", "path": "train.jsonl", "train": 10, "test": 5},
        "models": {"m": {"backend": "scripted"}},
        "agents": {"a": {"model": "m"}, "b": {"model": "m"}},
        "protocol": {"name": "society"},
        "cast": {"generator": ["a", "b"]},
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    found = check_recipe(path, (), None)
    assert (found["train"], found["test"]) == (10, 5)
    with pytest.raises(ConfigError, match=r"tasks.allow_overlap=true is not known"):
        check_recipe(path, ("tasks.allow_overlap=true",), None)


def test_the_package_datasets_is_not_imported_for_nothing(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", gsm8k(10))
    code = (
        "import sys; from engine.data.tasks import *; ArithmeticSource().load(); "
        f"HubSource(dataset='gsm8k', path={path!r}).load(); "
        "print([name for name in ('datasets', 'pyarrow', 'PIL', 'torch') if name in sys.modules])"
    )
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=100, check=True
    )
    assert done.stdout.strip() == "[]"


def test_a_configuration_decodes_from_a_recipe() -> None:
    data = {
        "dataset": "math",
        "config": ["algebra"],
        "where": {"level": [1, 2]},
        "images": ["a", "b"],
        "revision": "abc",
    }
    source = msgspec.convert(data, HubSource)
    assert source.config == ("algebra",) and source.fields().images == ("a", "b")
    assert source.fields().question == "problem"
