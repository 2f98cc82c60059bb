"""The book of a batched model: when batches leave, when they are looked at, and that no row is lost or sent twice."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.services.batch_book import CANCEL_GRACE_S, BatchSettings, Book, Cancel, Find, Known, Look, Step, Submit

T0 = 1_000_000.0


def book(*known: Known, max_bytes: int = 1_000, **changed: Any) -> Book:
    fields = {"max_requests": 3, "linger_s": 10.0, "poll_s": 15.0, "max_poll_s": 50.0, "max_open": 2, **changed}
    numbers = itertools.count()
    return Book(
        msgspec.convert(fields, BatchSettings), max_bytes=max_bytes, new_tag=lambda: f"t{next(numbers)}", known=known
    )


def asked(keys: str, now_s: float = T0, **changed: Any) -> Book:
    """One row a letter, all at once."""
    made = book(**changed)
    for key in keys:
        made.ask(key, 10, now_s)
    return made


def begun(keys: str, **changed: Any) -> Book:
    """They are in one batch "t0", which the service knows as "b0"."""
    made = asked(keys, max_requests=len(keys), **changed)
    assert made.decide(T0) == [Submit("t0", tuple(keys))]
    made.submitted("t0", "b0", T0)
    return made


def test_a_batch_leaves_when_it_is_full_and_the_rest_once_nothing_new_comes() -> None:
    made = asked("abcd")
    assert made.decide(T0) == [Submit("t0", ("a", "b", "c"))]
    assert made.next_s() == T0 + 10
    made.ask("e", 10, T0 + 9)
    assert made.decide(T0 + 18) == [] and made.next_s() == T0 + 19
    assert made.decide(T0 + 19) == [Submit("t1", ("d", "e"))]
    assert made.next_s() is None and made.num_gathered == 0  # both are on their way


def test_a_row_is_held_once_its_batch_is_there_for_sure() -> None:
    made = asked("a", max_requests=1)
    assert made.decide(T0) and not made.holds("a")
    made.submitted("t0", "b0", T0)
    assert made.holds("a")


def test_a_batch_without_an_id_is_looked_for_with_pauses_however_old_it_is() -> None:
    made = book(Known(tag="t", keys=("a",), at_s=T0 - 1e6))
    made.ask("a", 10, T0)
    assert made.decide(T0) == [Find("t", ("a",), T0 - 1e6)]
    made.still("t", T0)
    assert made.decide(T0 + 1) == [] and made.next_s() == T0 + 15


def test_a_trickle_does_not_hold_a_batch_back_for_ever() -> None:
    made = asked("0", max_requests=1_000)
    for number in range(1, 12):
        made.ask(str(number), 10, T0 + 9.0 * number)
    assert made.decide(T0 + 99.9) == []
    ((left),) = made.decide(T0 + 100)
    assert isinstance(left, Submit) and len(left.keys) == 12


def test_batches_are_bounded_in_bytes_and_in_number() -> None:
    made = asked("ab", max_bytes=25)
    made.ask("c", 30, T0)  # more than a batch may hold: alone in its own, for the service to refuse
    assert made.decide(T0) == [Submit("t0", ("a", "b")), Submit("t1", ("c",))]
    made.ask("d", 30, T0)
    assert made.decide(T0 + 1_000) == []  # two are open
    made.submitted("t0", "b0", T0)
    assert made.over("t0") == {"a", "b"}
    assert made.decide(T0 + 1) == [Submit("t2", ("d",))]


def test_who_gives_up_before_the_batch_leaves_is_not_in_it() -> None:
    made = asked("ab")
    made.drop("a")
    assert made.decide(T0 + 10) == [Submit("t0", ("b",))]


def test_looks_come_further_and_further_apart() -> None:
    made, looks = begun("a"), []
    for _ in range(5):
        now = made.next_s()
        assert now is not None and made.decide(now) == [Look("t0", "b0", ("a",))]
        assert made.decide(now) == []  # named once
        looks.append(now - T0)
        assert made.still("t0", now) == frozenset()
    assert looks == [15, 30, 60, 110, 160]  # 15 s, doubled up to 50 s


def test_a_result_is_handed_out_once_and_asked_again_the_row_is_new() -> None:
    made = begun("ab")
    made.drop("b")
    assert made.over("t0") == {"a"}
    made.ask("b", 10, T0 + 100)  # still known: its batch is looked at again at once
    assert made.decide(T0 + 100) == [Look("t0", "b0", ("a", "b"))]
    assert made.over("t0") == {"b"}
    made.ask("a", 10, T0 + 200)
    assert made.decide(T0 + 210) == [Submit("t1", ("a",))]


def test_nobody_looks_at_a_batch_that_nobody_waits_for() -> None:
    made = begun("ab")
    made.drop("a")
    made.drop("b")
    assert made.next_s() is None and made.decide(T0 + 1e6) == [] and made.num_open == 0


def test_rows_of_an_earlier_process_are_waited_for_and_not_submitted_again() -> None:
    made = book(
        Known(tag="old", keys=("a", "b"), at_s=T0 - 1e6, id="b0"),
        Known(tag="lost", keys=("b", "c"), at_s=T0 - 5),
    )
    assert made.decide(T0) == []
    for key in "abcd":
        made.ask(key, 10, T0)
    assert made.decide(T0) == [Look("old", "b0", ("a", "b"))]  # however long ago it was, it is looked at first
    assert made.next_s() == T0 + 10
    assert made.decide(T0 + 10) == [Find("lost", ("b", "c"), T0 - 5)]  # "b" was submitted again there
    assert made.over("old") == {"a"}
    made.submitted("lost", "b1", T0 + 10)
    assert made.decide(T0 + 25) == [Submit("t0", ("d",)), Look("lost", "b1", ("b", "c"))][::-1]
    assert made.over("lost") == {"b", "c"}


def test_a_batch_without_an_answer_is_looked_for_and_gathered_again_if_it_is_not_there() -> None:
    made = asked("abc")
    made.decide(T0)
    made.unsure("t0", T0)
    assert made.decide(T0 + 14) == []
    assert made.decide(T0 + 15) == [Find("t0", ("a", "b", "c"), T0)]
    made.drop("b")
    made.ask("d", 10, T0 + 15)
    made.unsent("t0", T0 + 15)
    assert made.next_s() == T0 + 30  # a pause
    assert made.decide(T0 + 30) == [Submit("t1", ("a", "c", "d"))]  # who came first is first


def test_a_pause_that_the_service_asks_for_is_kept() -> None:
    made = asked("abc")
    made.decide(T0)
    made.unsent("t0", T0, pause_s=900.0)
    assert made.decide(T0 + 899) == [] and made.next_s() == T0 + 900


def test_an_account_that_takes_no_more_gets_smaller_batches_and_larger_ones_again() -> None:
    made = asked("abcdefgh", max_requests=8, max_open=1)
    now, sizes = T0, []
    for _ in range(4):
        (step,) = made.decide(now)
        assert isinstance(step, Submit)
        sizes.append(len(step.keys))
        made.submitted(step.tag, "b", now)
        made.unsent(step.tag, now, full=True)
        now = made.next_s() or 0.0
    assert sizes == [8, 4, 2, 1]
    assert now == T0 + 15 + 30 + 50 + 50  # pauses grow with each refusal, and end with a batch that comes back
    (step,) = made.decide(now)[:1]
    assert isinstance(step, Submit) and len(step.keys) == 1
    made.submitted(step.tag, "b", now)
    made.over(step.tag)
    (step,) = made.decide(now)[:1]
    assert isinstance(step, Submit) and len(step.keys) == 2


def test_a_full_account_with_batches_of_ours_under_way_only_waits() -> None:
    made = asked("abcdef")
    first, second = made.decide(T0)
    made.submitted(first.tag, "b0", T0)
    made.unsent(second.tag, T0, full=True)
    assert made.over("t0") == {"a", "b", "c"}  # there is room: no need to wait for the end of the pause
    assert made.decide(T0) == [Submit("t2", ("d", "e", "f"))]


def test_a_batch_that_takes_too_long_is_cancelled_and_then_given_up() -> None:
    made = begun("a", max_wait_s=100.0)
    made.decide(T0 + 60)
    made.still("t0", T0 + 60)
    assert made.decide(T0 + 120) == [Look("t0", "b0", ("a",))]
    made.still("t0", T0 + 120)
    assert made.decide(T0 + 120) == [Cancel("t0", "b0")]
    made.cancelled("t0", T0 + 120)
    assert made.decide(T0 + 135) == [Look("t0", "b0", ("a",))]  # what is done by then is a result
    assert made.still("t0", T0 + 135) == frozenset()
    assert made.still("t0", T0 + 120 + CANCEL_GRACE_S) == {"a"}
    made.ask("a", 10, T0 + 5_000)
    assert made.decide(T0 + 5_010) == [Submit("t1", ("a",))]


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_requests": 0}, {"max_open": 0}, {"linger_s": -1}, {"poll_s": 0}, {"poll_s": 9, "max_poll_s": 8},
        {"max_wait_s": 0}, {"linger_s": float("nan")}, {"max_wait_s": float("inf")}, {"linger": 1},
    ],
)  # fmt: skip
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(wrong, BatchSettings)


class World:
    """A service, a ledger and asks around a book; what happens next is drawn."""

    def __init__(self, drawn: random.Random) -> None:
        self.drawn, self.now = drawn, T0
        self.ledger: dict[str, Known] = {}
        self.service: dict[str, Known] = {}  # id -> what was made
        self.waiting: set[str] = set()
        self.outcomes: Counter[str] = Counter()
        self.excused: Counter[str] = Counter()  # key -> how often its batch came to nothing
        self.numbers = itertools.count()
        self.restart()

    def restart(self) -> None:
        """The process dies; whatever step was being taken stands at any point of its way."""
        for step in getattr(self, "steps", []):
            if isinstance(step, Submit) and self.drawn.random() < 0.7:
                self.note(step)
                if self.drawn.random() < 0.6:
                    self.make(step)
        self.steps: list[Step] = []
        self.book = Book(
            BatchSettings(max_requests=3, linger_s=5, poll_s=4, max_poll_s=20, max_wait_s=200, max_open=3),
            max_bytes=100,
            new_tag=lambda: f"t{next(self.numbers)}",
            known=list(self.ledger.values()),
        )
        for key in self.drawn.sample(sorted(self.waiting), len(self.waiting)):
            self.book.ask(key, 10, self.now)

    def note(self, step: Submit) -> None:
        self.ledger[step.tag] = Known(tag=step.tag, keys=step.keys, at_s=self.now)

    def make(self, step: Submit) -> str:
        batch_id = f"b{len(self.service)}"
        self.service[batch_id] = self.ledger[step.tag]
        return batch_id

    def ask(self) -> None:
        key = f"k{next(self.numbers)}"
        self.waiting.add(key)
        self.book.ask(key, self.drawn.choice([10, 40]), self.now)

    def give_up(self) -> None:
        """A host stops waiting for a while, and asks again."""
        if self.waiting:
            key = self.drawn.choice(sorted(self.waiting))
            self.book.drop(key)
            if self.drawn.random() < 0.5:
                self.take()
            self.book.ask(key, 10, self.now)

    def pass_time(self) -> None:
        self.now += self.drawn.choice([0.5, 5.0, 30.0, 400.0])

    def take(self, kind: bool = False) -> None:
        """Decide, and finish one of the steps that are being taken. ``kind``: nothing goes wrong."""
        self.steps += self.book.decide(self.now)
        if not self.steps:
            return
        step = self.steps.pop(self.drawn.randrange(len(self.steps)))
        luck = 1.0 if kind else self.drawn.random()
        match step:
            case Submit():
                self.note(step)
                if luck < 0.2:
                    self.void(step.tag)
                    self.book.unsent(step.tag, self.now, full=luck < 0.1)
                elif luck < 0.5:
                    if luck < 0.35:
                        self.make(step)
                    self.book.unsure(step.tag, self.now)
                else:
                    self.found(step.tag, self.make(step))
            case Find():
                ids = [key for key, made in self.service.items() if made.tag == step.tag]
                if luck < 0.2:
                    self.book.still(step.tag, self.now)
                elif ids:
                    self.found(step.tag, ids[0])
                else:
                    self.void(step.tag)
                    self.book.unsent(step.tag, self.now)
            case Look():
                if luck < 0.1:
                    self.void(step.tag)
                    self.again(self.book.forget(step.tag), step)
                elif luck < 0.5:
                    self.again(self.book.still(step.tag, self.now), step)
                else:
                    for key in self.book.over(step.tag):
                        self.waiting.remove(key)
                        self.outcomes[key] += 1
            case Cancel():
                self.book.cancelled(step.tag, self.now)

    def found(self, tag: str, batch_id: str) -> None:
        self.ledger[tag] = msgspec.structs.replace(self.ledger[tag], id=batch_id)
        self.book.submitted(tag, batch_id, self.now)

    def void(self, tag: str) -> None:
        del self.ledger[tag]

    def again(self, keys: frozenset[str], look: Look) -> None:
        """A batch that came to nothing may be bought again, and is."""
        if look.tag not in self.book._batches:
            self.excused.update(look.keys)
        for key in keys:
            self.book.ask(key, 10, self.now)


@settings(max_examples=150, deadline=None)
@given(drawn=st.randoms(use_true_random=False), num_acts=st.integers(1, 120))
def test_every_ask_gets_one_outcome_and_no_row_is_bought_twice(drawn: random.Random, num_acts: int) -> None:
    world = World(drawn)
    acts = [world.ask, world.ask, world.take, world.take, world.take, world.pass_time, world.give_up, world.restart]
    for _ in range(num_acts):
        drawn.choice(acts)()
    asked = set(world.waiting) | set(world.outcomes)
    for _ in range(2_000):
        if not world.waiting:
            break
        world.now = max(world.now, world.book.next_s() or world.now)
        world.take(kind=True)
    assert not world.waiting, "an ask waits for ever"
    assert world.outcomes == dict.fromkeys(asked, 1)
    bought = Counter(key for made in world.service.values() for key in made.keys)
    assert all(bought[key] <= 1 + world.excused[key] for key in asked)
