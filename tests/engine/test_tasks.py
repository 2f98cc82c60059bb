"""Task sources: splits that never overlap and never depend on chance, and files that say what is wrong with them."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.tasks import LEVELS, ArithmeticSource, FileSource, Level, Split, checked_split, load_split
from protocols.errors import ConfigError, TaskError
from protocols.task import Task


def ids(tasks: list[Task]) -> list[str]:
    return [task.id for task in tasks]


@pytest.mark.parametrize("level", LEVELS)
def test_generated_tasks_are_split_without_overlap(level: Level) -> None:
    split = ArithmeticSource(level=level, train=40, test=30).load()
    assert (len(split.train), len(split.test)) == (40, 30)
    assert len({*ids(split.train), *ids(split.test)}) == 70
    for task in split.train + split.test:
        assert task.gold == (str(eval(task.question)),)  # noqa: S307 - made a line above, of numbers and signs
        assert task.dataset == f"arithmetic-{level}"


def test_the_same_numbers_are_one_task() -> None:
    split = ArithmeticSource(level="add20", train=100, test=50).load()
    sums = [tuple(sorted(task.question.split(" + "))) for task in split.train + split.test]
    assert len(set(sums)) == 150


def test_generated_tasks_depend_on_the_seed_alone() -> None:
    first, again, other = (ArithmeticSource(seed=seed).load() for seed in (1, 1, 2))
    assert first == again
    assert ids(first.train) != ids(other.train)


def test_a_level_that_is_exhausted_is_one_sentence() -> None:
    with pytest.raises(
        TaskError, match=r"level 'add20' has only about 1\d\d different tasks, train \+ test asks for 300"
    ):
        ArithmeticSource(level="add20", train=200, test=100).load()


@given(st.lists(st.integers(0, 10_000), min_size=5, max_size=60, unique=True), st.integers(0, 5), st.randoms())
def test_a_file_is_split_the_same_whatever_its_order(numbers: list[int], seed: int, shuffler: random.Random) -> None:
    import tempfile

    def split(order: list[int]) -> Split:
        with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as file:
            file.writelines(json.dumps({"question": f"{n}?", "answer": n, "id": n}) + "\n" for n in order)
            file.flush()
            return FileSource(path=file.name, seed=seed, id="id").load()

    mixed = numbers.copy()
    shuffler.shuffle(mixed)
    first, second = split(numbers), split(mixed)
    assert (ids(first.train), ids(first.test)) == (ids(second.train), ids(second.test))
    assert not {*ids(first.train)} & {*ids(first.test)}
    assert len(first.train) + len(first.test) == len(numbers)


def write(tmp_path: Path, name: str, content: str | bytes) -> str:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def rows(count: int, start: int = 0) -> str:
    return "".join(json.dumps({"question": f"{n}?", "answer": n}) + "\n" for n in range(start, start + count))


def test_a_file_gives_a_fifth_to_be_held_out(tmp_path: Path) -> None:
    path = write(tmp_path, "a.jsonl", rows(50))
    split = FileSource(path=path).load()
    assert (len(split.train), len(split.test)) == (40, 10)
    limited = FileSource(path=path, train=7, test=3).load()
    assert (len(limited.train), len(limited.test)) == (7, 3)
    assert split.train[0].dataset == "a" and split.train[0].id.startswith("a-")
    assert ids(FileSource(path=path, seed=5).load().test) != ids(split.test)


def test_two_files_are_kept_apart(tmp_path: Path) -> None:
    train, test = write(tmp_path, "a.jsonl", rows(10)), write(tmp_path, "b.jsonl", rows(10, start=10))
    split = FileSource(path=train, test_path=test, test=4).load()
    assert (len(split.train), len(split.test)) == (10, 4)
    with pytest.raises(TaskError, match="10 tasks are both learned from and held out"):
        FileSource(path=train, test_path=train).load()


def test_more_than_a_file_holds_is_one_sentence(tmp_path: Path) -> None:
    path = write(tmp_path, "a.jsonl", rows(10))
    with pytest.raises(TaskError, match="holds 10 tasks, train=8 and test=3 ask for more; lower one of them"):
        FileSource(path=path, train=8, test=3).load()


def only(tmp_path: Path, name: str, content: str | bytes, **fields: Any) -> Task:
    """The one task of a file."""
    other = write(tmp_path, "other.jsonl", '{"question": "other", "q": "other", "id": 77, "choices": ["x"]}\n')
    return FileSource(path=other, test_path=write(tmp_path, name, content), **fields).load().test[0]


FORMATS = {
    "a.jsonl": '{"question": "What?\\nThat", "answer": "7"}\n\n',
    "a.json": '[{"question": "What?\\nThat", "answer": "7"}]',
    "a.csv": 'question,answer\r\n"What?\nThat",7\r\n',
    "a.tsv": 'question\tanswer\n"What?\nThat"\t7\n',
    "A.CSV": '\ufeffquestion,answer\n"What?\nThat",7\n',
}


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_same_task(tmp_path: Path, name: str) -> None:
    task = only(tmp_path, name, FORMATS[name])
    assert (task.question, task.gold) == ("What?\nThat", ("7",))


@pytest.mark.parametrize("mark", ["\u2028", "\x85", "\x0b", "\x0c", "\x1c"])
def test_a_line_ends_where_json_lines_say_it_does(tmp_path: Path, mark: str) -> None:
    text = json.dumps({"question": f"one{mark}two", "answer": 1}, ensure_ascii=mark < " ")
    assert only(tmp_path, "a.jsonl", text + "\r\n").question == f"one{mark}two"
    assert only(tmp_path, "a.csv", f"question\none{mark}two\n").question == f"one{mark}two"


def test_fields_may_have_other_names(tmp_path: Path) -> None:
    task = only(
        tmp_path,
        "a.jsonl",
        '{"q": "Which?", "solution": "Because.\\n#### 1,234", "options": ["a", 2], "key": 5}\n',
        question="q",
        answer="solution",
        choices="",
        answer_after="####",
    )
    assert (task.question, task.gold, task.choices) == ("Which?", ("1,234",), ())
    chosen = only(
        tmp_path, "b.jsonl", '{"question": "Which?", "id": 5, "choices": ["a", 2]}\n', choices="choices", id="id"
    )
    assert (chosen.id, chosen.choices, chosen.gold) == ("5", ("a", "2"), ())


@pytest.mark.parametrize(
    ("answer", "gold"), [("7", ("7",)), (0, ("0",)), ("", ()), (None, ()), (["a", 2], ("a", "2")), ([], ())]
)
def test_answers_may_be_several_or_none(tmp_path: Path, answer: object, gold: tuple[str, ...]) -> None:
    assert only(tmp_path, "a.jsonl", json.dumps({"question": "?", "answer": answer})).gold == gold


BROKEN: list[tuple[str, str | bytes, dict[str, str], str]] = [
    ("a.jsonl", b'{"question": "\xff"}', {}, r"tasks: .*a.jsonl is not UTF-8 text \(byte 14\); save it as UTF-8"),
    (
        "a.jsonl",
        '{"question": "?"}\n{"question": }',
        {},
        r"a.jsonl, line 2: is not valid JSON: Expecting value at column 14$",
    ),
    ("a.json", '[{"question": "?"},\n{"question": }]', {}, r"a.json: is not valid JSON: .* at column 14 of line 2$"),
    ("a.json", '{"question": "?"}', {}, "a.json: must hold a JSON list of tasks, not dict"),
    ("a.json", "[1]", {}, "a.json, item 1: must be an object with fields, not int"),
    ("a.jsonl", "[1]", {}, "a.jsonl, line 1: must be an object with fields, not list"),
    ("a.json", "[" * 100_000, {}, "a.json: is JSON that cannot be read: "),
    (
        "a.jsonl",
        '{"question": "?", "answer": ' + "9" * 5000 + "}",
        {},
        "a.jsonl, line 1: is JSON that cannot be read: ",
    ),
    ("a.jsonl", '{"question": "half \\ud83d"}', {}, "a.jsonl, line 1: holds a .u escape that is half a character"),
    ("a.jsonl", '{"prompt": "?"}', {}, r"line 1: no text under 'question' \(it has: prompt\); set tasks.question"),
    ("a.jsonl", '{"question": " "}', {}, "line 1: no text under 'question'"),
    ("a.jsonl", '{"question": 7}', {}, "line 1: no text under 'question'"),
    ("a.jsonl", "{}", {}, r"line 1: no text under 'question' \(it has: nothing\)"),
    (
        "a.jsonl",
        '{"question": "?", "id": 1}\n{"question": "!", "id": 1}',
        {"id": "id"},
        "line 2: id '1' was used before",
    ),
    ("a.jsonl", '{"question": "?"}', {"id": "id"}, "line 1: nothing under 'id'; mend it, or leave tasks.id out"),
    ("a.jsonl", '{"question": "?", "c": "a, b"}', {"choices": "c"}, "line 1: 'c' must be a list, not str: 'a, b'"),
    (
        "a.jsonl",
        '{"question": "?"}',
        {"choices": "c"},
        "line 1: nothing under 'c'; mend it, or leave tasks.choices out",
    ),
    ("a.jsonl", '{"question": "?", "answer": "7"}', {"answer_after": "####"}, "line 1: 'answer' holds no '####'"),
    ("a.jsonl", "", {}, "a.jsonl: holds no tasks"),
    ("a.jsonl", "\n \n", {}, "a.jsonl: holds no tasks"),
    ("a.json", "[]", {}, "a.json: holds no tasks"),
    ("a.csv", "question,answer\n", {}, "a.csv: holds no tasks"),
    ("a.csv", "", {}, "a.csv: holds no tasks"),
    ("a.csv", "q,answer\n1 + 1,2\n", {}, r"a.csv, line 2: no text under 'question' \(it has: q, answer\)"),
    (
        "a.csv",
        "question\n" + "x" * 200_000 + "\n",
        {},
        "a.csv, line 2: is not valid CSV: field larger than field limit",
    ),
    ("a.tsv", "question,answer\n?,1\n", {}, "a.tsv, line 2: no text under 'question'"),
    ("a.txt", "What?", {}, "a.txt must end in .jsonl, .json, .csv or .tsv"),
]


@pytest.mark.parametrize(("name", "content", "fields", "said"), BROKEN)
def test_a_broken_file_is_one_sentence(
    tmp_path: Path, name: str, content: str | bytes, fields: dict[str, str], said: str
) -> None:
    with pytest.raises(TaskError, match=said) as error:
        FileSource(path=write(tmp_path, name, content), **fields).load()  # type: ignore[arg-type]
    assert "\n" not in str(error.value)


def test_a_missing_file_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(
        TaskError, match=r"cannot read .*none.jsonl: No such file or directory; give the path from where"
    ):
        FileSource(path=str(tmp_path / "none.jsonl")).load()
    with pytest.raises(TaskError, match="Is a directory"):
        FileSource(path=str(tmp_path)).load()
    with pytest.raises(ConfigError, match=r"tasks.path is empty"):
        load_split(FileSource(path=""))


def test_a_task_on_both_sides_is_refused() -> None:
    task = Task(id="t", question="?")
    with pytest.raises(TaskError, match="1 tasks are both learned from and held out, 't' among them"):
        checked_split([task], [task])
