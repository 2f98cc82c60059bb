"""Task sources: splits that never overlap and never depend on chance, and files that say what is wrong with them."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.data.choices import choices_within
from engine.data.split import what_it_asks
from engine.data.tasks import LEVELS, ArithmeticSource, FileSource, Level, Split, checked_split, load_split
from protocols.errors import ConfigError, TaskError
from protocols.message import ImagePart
from protocols.task import Task
from tests.engine.data.test_media import png


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
    with pytest.raises(TaskError, match="holds 10 tasks, and test=10 leaves none to learn from; lower test"):
        FileSource(path=path, test=10).load()


def only(tmp_path: Path, name: str, content: str | bytes, **fields: Any) -> Task:
    """The one task of a file."""
    other = write(
        tmp_path, "other.jsonl", '{"question": "other", "q": "other", "solution": "", "id": 77, "choices": ["x"]}\n'
    )
    return FileSource(path=other, test_path=write(tmp_path, name, content), **fields).load().test[0]


def alone(tmp_path: Path, name: str, content: str | bytes, **fields: Any) -> Task:
    """The one task of a file that needs no other."""
    (task,) = FileSource(path=write(tmp_path, name, content), only="test", **fields).load().test
    return task


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


def test_a_misspelt_field_of_answers_is_found_and_an_empty_one_is_not(tmp_path: Path) -> None:
    rows = '{"q": "1 + 1?", "a": 2}\n{"q": "1 + 2?", "a": ""}\n'
    path = write(tmp_path, "a.jsonl", rows)
    with pytest.raises(
        TaskError, match=r"^a: no row has anything under 'ans' \(they have: q, a\); set tasks.answer to"
    ):
        FileSource(path=path, question="q", answer="ans").load()
    assert len(FileSource(path=path, question="q", answer="a").load().train) == 1
    assert FileSource(path=path, question="q", only="train").load().train[0].gold == ()  # answers nowhere: as it says


def test_an_answer_that_is_no_number_says_so(tmp_path: Path) -> None:
    path = write(tmp_path, "a.jsonl", '{"question": "?", "answer": 3}\n{"question": "!", "answer": "Paris"}\n')
    with pytest.raises(TaskError, match=r"a.jsonl, line 2: the answer 'Paris' is no number; .*answer_format: text"):
        FileSource(path=path).load()
    formats = {task.answer_format for task in FileSource(path=path, answer_format="auto", only="test").load().test}
    assert formats == {"number", "text"}


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
    ("a.json", "[" * 100_000, {}, "a.json: is JSON that cannot be read: it is nested too deeply$"),
    (
        "a.jsonl",
        '{"question": "?", "answer": ' + "9" * 5000 + "}",
        {},
        "a.jsonl, line 1: is JSON that cannot be read: a number has too many digits$",
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
        TaskError, match=r"cannot read .*none.jsonl: No such file or directory; give the path from the recipe"
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


def test_a_question_under_two_ids_is_not_on_both_sides(tmp_path: Path) -> None:
    train = write(tmp_path, "a.jsonl", '{"key": 1, "question": "What  is Love?"}\n{"key": 2, "question": "More?"}\n')
    test = write(tmp_path, "b.jsonl", '{"key": 3, "question": "what is love?"}\n')
    with pytest.raises(TaskError, match=r"1 questions are both learned from and held out under two ids, that of '1'"):
        FileSource(path=train, test_path=test, id="key").load()
    assert ids(FileSource(path=train, test_path=test, id="key", overlap="drop").load().train) == ["2"]
    with pytest.raises(TaskError, match=r"a.jsonl holds 1 tasks for tasks.train=2; lower it"):
        FileSource(path=train, test_path=test, id="key", overlap="drop", train=2).load()


def test_other_choices_or_images_make_another_question() -> None:
    image = ImagePart(sha256="a" * 64)
    asked = [
        Task(id="1", question="Which?", choices=("a", "b")),
        Task(id="2", question="which? ", choices=("B", "a")),
        Task(id="3", question="Which?", choices=("a", "c")),
        Task(id="4", question="Which?", choices=("a", "b"), images=(image,)),
    ]
    assert len({what_it_asks(task) for task in asked}) == 3
    checked_split(asked[:2], asked[2:])
    with pytest.raises(TaskError, match="1 questions"):
        checked_split(asked[:1], asked[1:])


def test_a_question_asked_twice_is_one_task_if_the_answers_agree(tmp_path: Path) -> None:
    twice = '{"question": "2 + 2?", "answer": 4}\n{"question": "2 + 2? ", "answer": "4.0"}\n'
    path = write(tmp_path, "a.jsonl", twice + rows(10, start=50))
    split = FileSource(path=path).load()
    assert len(split.train) + len(split.test) == 11
    broken = write(tmp_path, "b.jsonl", twice + '{"question": "2 + 2?", "answer": 5}\n')
    with pytest.raises(
        TaskError, match=r"b.jsonl, line 3: asks what .*b.jsonl, line 1 asks, with another answer; mend"
    ):
        FileSource(path=broken).load()


def test_the_order_of_choices_makes_no_other_answer(tmp_path: Path) -> None:
    def lines(second: str) -> str:
        return (
            '{"question": "Which?", "c": ["red", "blue", "green"], "answer": "B"}\n'
            f'{{"question": "which?", "c": ["Blue", "green", "red"], "answer": "{second}"}}\n'
        )

    task = alone(tmp_path, "a.jsonl", lines("A"), choices="c", answer_format="choice")
    assert [task.choices[ord(letter) - ord("A")] for letter in task.gold] == ["blue"]
    with pytest.raises(TaskError, match=r"line 2: asks what .* line 1 asks, with another answer"):
        alone(tmp_path, "b.jsonl", lines("B"), choices="c", answer_format="choice")


def test_choices_may_stay_in_the_question_for_good(tmp_path: Path) -> None:
    line = '{"question": "A) red or B) blue?", "answer": "B"}\n'
    task = alone(tmp_path, "a.jsonl", line + line, answer_format="choice")
    assert (task.choices, task.gold) == ((), ("B",))


def test_all_tasks_may_go_to_one_side(tmp_path: Path) -> None:
    path, other = write(tmp_path, "a.jsonl", rows(10)), write(tmp_path, "b.jsonl", rows(4, start=20))
    for source, sizes in (
        (FileSource(path=path, only="test"), (0, 10)),
        (FileSource(path=path, only="train", train=3), (3, 0)),
        (FileSource(path=path, test_path=other, only="test"), (0, 4)),
        (FileSource(path=path, test_path=other, only="train"), (10, 0)),
    ):
        split = source.load()
        assert (len(split.train), len(split.test)) == sizes


@pytest.mark.parametrize(("settings", "said"), [({"train": 11}, "train=11"), ({"test": 5}, "test=5")])
def test_two_files_do_not_hold_more_than_they_do(tmp_path: Path, settings: dict[str, int], said: str) -> None:
    path, other = write(tmp_path, "a.jsonl", rows(10)), write(tmp_path, "b.jsonl", rows(4, start=20))
    with pytest.raises(TaskError, match=rf"holds (10|4) tasks for tasks.{said}; lower it"):
        FileSource(path=path, test_path=other, **settings).load()  # type: ignore[arg-type]


CHOICES: list[tuple[object, object, str, tuple[str, ...]]] = [
    (["red", "blue"], "blue", "auto", ("B",)),
    (["red", "blue"], " Blue", "auto", ("B",)),
    (["red", "blue"], "B", "auto", ("B",)),
    (["red", "blue"], "(B)", "auto", ("B",)),
    (["red", "blue"], 1, "auto", ("B",)),
    (["15", "13", "8"], 8, "auto", ("C",)),
    (["red", "blue"], "1", "index", ("B",)),
    (["red", "blue"], 2, "index1", ("B",)),
    (["1", "2", "0"], 2, "index", ("C",)),
    (["1", "2", "0"], 2, "text", ("B",)),
    (["B", "A"], "A", "letter", ("A",)),
    (["B", "A"], "A", "text", ("B",)),
    (["x", "y", "x"], "x", "auto", ("A", "C")),
    (["red", "blue"], ["red", "B"], "auto", ("A", "B")),
    (["red", "blue"], None, "auto", ()),
    ({"A": "red", "B": "blue"}, "B", "auto", ("B",)),
    ({"label": ["1", "2"], "text": ["red", "blue"]}, "2", "auto", ("B",)),
    ([{"label": "1", "text": "red"}, {"label": "2", "text": "blue"}], "2", "auto", ("B",)),
    ("A) red B) blue", "B", "auto", ("B",)),
    ("(A) red\n(B) blue", "blue", "auto", ("B",)),
    ("A. red. B. blue", "B", "auto", ("B",)),
]


@pytest.mark.parametrize(("choices", "answer", "answer_is", "gold"), CHOICES)
def test_an_answer_names_a_choice(
    tmp_path: Path, choices: object, answer: object, answer_is: str, gold: tuple[str, ...]
) -> None:
    text = json.dumps({"question": "?", "choices": choices, "answer": answer})
    task = only(tmp_path, "a.jsonl", text, choices="choices", answer_format="auto", answer_is=answer_is)
    assert (task.answer_format, task.gold) == ("choice", gold)
    plain = only(tmp_path, "a.jsonl", text, choices="choices", answer_format="text", answer_is=answer_is)
    if answer_is != "auto":
        assert plain.gold == tuple(plain.choices["ABC".index(letter)] for letter in gold)


@pytest.mark.parametrize(
    ("choices", "answer", "answer_is", "said"),
    [
        (
            ["red", "blue"],
            "green",
            "auto",
            "the answer 'green' names none of the 2 choices; mend it or tasks.answer_is",
        ),
        (["red", "blue"], 2, "auto", "names none of the 2 choices"),
        (["red", "blue"], True, "index", "names none"),
        (["red", "blue"], 0.5, "index", "names none"),
        (["red", "blue"], "9" * 5000, "index", "names none"),
        (["1", "2", "0"], 2, "auto", "names other choices as text and as index; set tasks.answer_is"),
        (["B", "A"], "A", "auto", "names other choices as text and as letter"),
        ([str(n) for n in range(27)], "1", "auto", "holds 27 choices; a question has at most 26"),
        (7, "1", "auto", "'choices' must be a list, not int: 7"),
    ],
)
def test_an_answer_that_names_no_choice_is_one_sentence(
    tmp_path: Path, choices: object, answer: object, answer_is: str, said: str
) -> None:
    text = json.dumps({"question": "?", "choices": choices, "answer": answer})
    with pytest.raises(TaskError, match=f"a.jsonl, line 1: .*{said}"):
        only(tmp_path, "a.jsonl", text, choices="choices", answer_format="auto", answer_is=answer_is)


def test_choices_may_stand_in_fields_of_their_own_or_in_the_question(tmp_path: Path) -> None:
    row = {"question": "Which?", "a": "red", "b": None, "c": "blue", "d": "", "answer": "C"}
    task = alone(tmp_path, "a.jsonl", json.dumps(row), choices=("a", "b", "c", "d"), answer_format="auto")
    assert (task.choices, task.gold) == (("red", "", "blue"), ("C",))
    row = {"question": "Vitamin A. is which? A) red B) blue", "answer": "red"}
    task = alone(tmp_path, "b.jsonl", json.dumps(row), choices_in_question=True, answer_format="auto")
    assert (task.question, task.choices, task.gold) == ("Vitamin A. is which?", ("red", "blue"), ("A",))
    with pytest.raises(TaskError, match="line 1: the question does not end in lettered choices"):
        alone(tmp_path, "c.jsonl", '{"question": "Which?"}', choices_in_question=True)


@given(st.text(alphabet="AB(). \nxyC:", max_size=200))
def test_lettered_choices_never_hang_nor_lose_text(text: str) -> None:
    try:
        head, choices = choices_within(text, "?")
    except TaskError:
        return
    assert text.startswith(head) and all(choice in text for choice in choices.texts)


def test_a_wall_of_letters_does_not_keep_us_long() -> None:
    with pytest.raises(TaskError):
        choices_within("A) " * 300_000, "?")
    assert len(choices_within("?" + "A) B) " * 100_000, "?")[1].texts) == 2


@pytest.mark.parametrize(("value", "gold"), [(True, "yes"), ("No", "no"), ("false", "no"), ("YES ", "yes"), (1, "yes")])
def test_yes_and_no_have_one_spelling(tmp_path: Path, value: object, gold: str) -> None:
    text = json.dumps({"question": "?", "answer": value})
    assert only(tmp_path, "a.jsonl", text, answer_format="yes_no").gold == (gold,)
    with pytest.raises(TaskError, match="line 1: the answer must be yes or no, true or false, not 'maybe'"):
        only(tmp_path, "b.jsonl", '{"question": "?", "answer": "maybe"}', answer_format="yes_no")


@pytest.mark.parametrize(
    ("answer", "answer_format"),
    [("1/2", "number"), (["1", 2.5], "number"), ("one", "text"), (True, "yes_no"), ("no", "yes_no"), (None, "text")],
)
def test_the_format_may_follow_the_answers(tmp_path: Path, answer: object, answer_format: str) -> None:
    task = only(tmp_path, "a.jsonl", json.dumps({"question": "?", "answer": answer}), answer_format="auto")
    assert task.answer_format == answer_format


def test_fields_inside_fields_details_and_tolerance(tmp_path: Path) -> None:
    row = {
        "turns": [{"value": "How far?"}],
        "gold": {"km": 7.5, "off": "0.25"},
        "a.b": "dotted",
        "tags": ["x", {"y": "é"}],
        "none": None,
    }
    details = {"name": "a.b", "tags": "tags", "off": "gold.off", "none": "none", "far": "turns.1.value"}
    task = alone(
        tmp_path,
        "a.jsonl",
        json.dumps(row),
        question="turns.0.value",
        answer="gold.km",
        details=details,
        tolerance="gold.off",
    )
    assert (task.question, task.gold, task.tolerance) == ("How far?", ("7.5",), 0.25)
    assert task.details == {"name": "dotted", "tags": '["x", {"y": "é"}]', "off": "0.25"}
    wrong: tuple[object, ...] = ("-1", "nan", "inf", [], "x")
    for bad in wrong:
        with pytest.raises(TaskError, match="line 1: 'off' must be a number from 0 up"):
            alone(tmp_path, "b.jsonl", json.dumps({"question": "?", "off": bad}), tolerance="off")
    with pytest.raises(ValueError, match="tolerance=-1"):
        FileSource(path="a", tolerance=-1.0)


def test_the_last_box_of_a_solution_is_gold(tmp_path: Path) -> None:
    row = {"question": "?", "answer": r"First $\boxed{3}$, no: $\boxed{\frac{1}{2}}$."}
    assert alone(tmp_path, "a.jsonl", json.dumps(row), answer_in="boxed").gold == (r"\frac{1}{2}",)
    with pytest.raises(TaskError, match=r"line 1: 'answer' holds no .boxed"):
        alone(tmp_path, "b.jsonl", '{"question": "?", "answer": "7"}', answer_in="boxed")


def test_a_list_may_lie_inside_an_object(tmp_path: Path) -> None:
    path = write(
        tmp_path, "a.json", json.dumps({"data": {"rows": [{"question": f"{n}?", "answer": n} for n in range(5)]}})
    )
    assert len(FileSource(path=path, items="data.rows").load().train) == 4
    with pytest.raises(TaskError, match=r"must hold a JSON list of tasks under 'data.row', not NoneType"):
        FileSource(path=path, items="data.row").load()


def test_pairs_of_text(tmp_path: Path) -> None:
    both = write(tmp_path, "a.txt", "eins\tone\r\n\nzwei\ttwo\n")
    split = FileSource(path=both, format="pairs", answer_format="text", details={"line": "line"}, test=1).load()
    found = {task.question: (task.gold, task.details["line"]) for task in split.train + split.test}
    assert found == {"eins": (("one",), "1"), "zwei": (("two",), "3")}
    source, reference = write(tmp_path, "b.de", "eins\nzwei\neins\n"), write(tmp_path, "b.en", "one\ntwo\na\n\n")
    split = FileSource(path=source, reference_path=reference, answer_format="text", only="test").load()
    assert {task.question: task.gold for task in split.test} == {"eins": ("a", "one"), "zwei": ("two",)}


@pytest.mark.parametrize(
    ("sources", "references", "said"),
    [
        ("eins\nzwei\n", "one\n", r"b.de has 2 lines and .*b.en has 1; each line of the one must be the reference"),
        ("eins\n\ndrei\n", "one\ntwo\nthree\n", "b.de, line 2: is empty; give its text, or take the line out"),
        ("eins\nzwei\ndrei\n", "one\n \nthree\n", "b.en, line 2: is empty"),
    ],
)
def test_lines_that_do_not_pair_are_one_sentence(tmp_path: Path, sources: str, references: str, said: str) -> None:
    path, other = write(tmp_path, "b.de", sources), write(tmp_path, "b.en", references)
    with pytest.raises(TaskError, match=said):
        FileSource(path=path, reference_path=other, answer_format="text").load()
    with pytest.raises(TaskError, match=r"c.txt, line 2: must hold a source, one tab and its reference; it has 0 tabs"):
        FileSource(path=write(tmp_path, "c.txt", "a\tb\nc\n"), format="pairs", answer_format="text").load()


def test_a_row_of_any_depth_is_a_task_or_a_sentence(tmp_path: Path) -> None:
    for depth in (50, 400, 600, 800, 900, 950, 1000, 5000):
        deep = "[" * depth + "]" * depth
        path = write(tmp_path, "a.jsonl", f'{{"question": "?", "answer": {deep}, "d": {deep}}}')
        try:
            assert len(FileSource(path=path, details={"d": "d"}, only="test").load().test) == 1
        except TaskError as err:
            assert "a.jsonl" in str(err)  # noqa: PT017 - whether it is one depends on how deep the caller is


def test_the_examples_of_the_docs_load() -> None:
    folder = Path(__file__).resolve().parent.parent.parent.parent / "examples"
    pairs = FileSource(
        path=str(folder / "my-translations.de"),
        reference_path=str(folder / "my-translations.en"),
        answer_format="text",
        only="test",
    )
    assert {task.question: task.gold for task in pairs.load().test}["Es regnet."] == ("It is raining.",)
    source = FileSource(
        path=str(folder / "my-choices.jsonl"),
        choices="options",
        answer_is="text",
        answer_format="choice",
        where={"level": 2},
        only="test",
    )
    assert {task.gold for task in source.load().test} == {("B",)} and len(source.load().test) == 2


def test_rows_are_chosen_by_their_fields(tmp_path: Path) -> None:
    lines = [
        {"question": f"{n}?", "level": n % 3, "tags": ["even" if n % 2 == 0 else "odd"], "ok": n < 5} for n in range(12)
    ]
    path = write(tmp_path, "a.json", json.dumps(lines))

    def asked(**where: Any) -> set[str]:
        return {task.question for task in FileSource(path=path, where=where, only="test").load().test}

    assert asked(level=[1, "2"], tags="even") == {"2?", "4?", "8?", "10?"}
    assert asked(ok=True) == {f"{n}?" for n in range(5)}
    with pytest.raises(TaskError, match="leaves none of its 12 rows"):
        asked(level=9)


def test_images_come_from_beside_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOOT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "img").mkdir()
    for shade in (1, 2):
        (tmp_path / "img" / f"{shade}.png").write_bytes(png(300, 240, shade))
    lines = [{"question": "What is it?", "images": f"img/{shade}.png", "answer": shade} for shade in (1, 2)]
    path = write(tmp_path, "a.json", json.dumps(lines))
    source = FileSource(path=path, images="images", only="test")
    tasks = source.load().test
    assert len({task.id for task in tasks}) == 2  # the same question of another picture
    assert all(task.images[0].width_px == 300 for task in tasks)
    assert len(list((tmp_path / "cache" / "media").iterdir())) == 2
    before = source.digest()
    (tmp_path / "img" / "2.png").write_bytes(png(300, 240, 3))
    assert source.digest() != before
    (tmp_path / "img" / "1.png").write_bytes(png(20, 20))
    with pytest.raises(TaskError, match=r"a.json, item 1: .*1.png: measures 20 x 20 pixels, a side below 224"):
        FileSource(path=path, images="images", image_hygiene="refuse").load()
    (tmp_path / "img" / "1.png").write_bytes(png()[:-9])
    with pytest.raises(TaskError, match=r"a.json, item 1: .*1.png: breaks off before its end; put a whole image there"):
        source.load()


def test_parquet_is_read_and_what_is_not_parquet_is_one_sentence(tmp_path: Path) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    table = arrow.Table.from_pylist([{"question": f"{n}?", "answer": n, "choices": ["a", "b"]} for n in range(600)])
    parquet.write_table(table, tmp_path / "a.parquet")
    split = FileSource(path=str(tmp_path / "a.parquet"), choices="choices").load()
    assert len(split.train) == 480 and split.train[0].choices == ("a", "b")
    broken = write(tmp_path, "b.parquet", (tmp_path / "a.parquet").read_bytes()[:-20])
    for path, said in (
        (broken, "b.parquet: cannot be read as Parquet after row 0"),
        (f"{tmp_path}/no.parquet", "No such file"),
    ):
        with pytest.raises(TaskError, match=said):
            FileSource(path=path).load()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["A", "text", "label", "x"]), inner),
    max_leaves=8,
)


@given(
    st.lists(
        st.fixed_dictionaries({}, optional=dict.fromkeys(("question", "answer", "c", "id", "d"), JSON)), max_size=4
    ),
    st.sampled_from(["auto", "number", "text", "boxed"]),
    st.sampled_from(["auto", "text", "letter", "index"]),
    st.booleans(),
)
def test_hostile_rows_give_tasks_or_one_sentence_with_file_and_line(
    found: list[dict[str, Any]], answer_format: str, answer_is: Any, named: bool
) -> None:
    import tempfile

    with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as file:
        file.writelines(json.dumps(row) + "\n" for row in found)
        file.flush()
        source = FileSource(
            path=file.name,
            choices="c" if named else "",
            id="id" if named else "",
            details={"d": "d.x"},
            answer_format=answer_format,
            answer_is=answer_is,
            only="test",
        )
        said, tasks = "", []
        try:
            tasks = source.load().test
        except TaskError as err:
            said = str(err)
        assert bool(said) != bool(tasks) and "\n" not in said
        assert not said or (file.name in said and (", line " in said or "holds no tasks" in said))
        assert all(task.question.strip() for task in tasks)


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 3)), min_size=5, max_size=40), st.randoms())
def test_repeated_questions_leave_no_trace_of_the_files_order(
    numbers: list[tuple[int, int]], shuffler: random.Random
) -> None:
    """Same content, same id; the same split, whatever came first, with repeats in other spellings."""
    import tempfile

    def split(order: list[tuple[int, int]]) -> Split:
        with tempfile.TemporaryDirectory() as folder:
            lines = [{"question": f"What{' ' * (1 + spaces)}is {n}?", "answer": n, "n": spaces} for n, spaces in order]
            path = write(Path(folder), "a.json", json.dumps([*lines, {"question": "Else?", "answer": 0}]))
            return FileSource(path=path, details={"n": "n"}, test=1).load()

    mixed = numbers.copy()
    shuffler.shuffle(mixed)
    if len({n for n, _ in numbers}) > 1:
        assert split(numbers) == split(mixed)
        assert len(split(numbers).train) == len({n for n, _ in numbers})


def test_the_held_out_side_is_marked_as_such() -> None:
    split = load_split(ArithmeticSource(level="add30", train=5, test=4))
    assert [task.held_out for task in split.train] == [False] * 5
    assert [task.held_out for task in split.test] == [True] * 4
