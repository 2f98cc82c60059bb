"""The baselines, against runs worked by hand."""

from __future__ import annotations

from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.answer import Answer
from protocols.baseline import Baseline, BaselineSettings, Match, Method, read_score
from protocols.catalogue import load_protocol_prompts
from protocols.conversation import Player
from protocols.errors import ConfigError
from protocols.graph import Verdict
from protocols.message import Ask, ImagePart, Sampling
from protocols.prompt import PromptSet
from protocols.society import Society, SocietySettings
from protocols.task import Task
from tests.fakes import Answering, Played, failure_of, node_of, play, told

TASK = Task(id="t", question="What is 24 + 19?", gold=("43",))
PLAIN = PromptSet(
    "plain",
    {
        "system": "",
        "answer": "Q ${question}",
        "step_by_step": "STEPS ${question}",
        "review": "AGAIN",
        "score": "SCORE ${question}: ${reply}",
        "repair": "NUMBER",
        "keywords": "KEYWORDS ${question}",
        "topics": "TOPICS ${question}",
        "demonstration": "DEMO ${question}",
        "informed": "Q ${question} KNOWN ${knowledge}",
    },
    Baseline.SLOTS,
)
SOLVER = (Player(name="ada"),)


def baseline(method: Method, *, scorer: str = "", prompts: PromptSet = PLAIN, **settings: Any) -> Baseline:
    cast = {"solver": SOLVER} | ({"scorer": (Player(name=scorer),)} if scorer else {})
    return Baseline(BaselineSettings(method=method, **settings), cast, prompts)


def saying(**texts: str) -> Answering:
    """Replies by step and seat, ``answer_0="43"``, reviews as ``review_1``; "-" fails."""

    def answer(ask: Ask) -> Any:
        number, step, seat = node_of(ask).replace("~1", "_again").split(".")
        said = texts.get(f"review_{number}" if int(number) else f"{step}_{seat}", "-")
        return failure_of(ask) if said == "-" else said

    return answer


def answers(*texts: str) -> dict[str, str]:
    return {f"answer_{number}": text for number, text in enumerate(texts)}


def edges(played: Played, target: str) -> set[tuple[str, str]]:
    return {(edge.source, edge.kind) for edge in played.debate.edges if edge.target == target}


def counted(played: Played) -> list[str]:
    return [node.id for node in played.debate.utterances if node.answers]


# One answer


@pytest.mark.parametrize(("method", "prompt"), [("single", "Q "), ("cot", "STEPS ")])
def test_one_answer_is_the_verdict(method: Method, prompt: str) -> None:
    played = play(baseline(method), TASK, saying(answer_0="43"))
    assert [told(ask) for ask in played.asks] == [prompt + TASK.question]
    assert played.verdict == Verdict(
        answer="43", stop_reason="rounds", aggregator=method, support=1, votes=1, correct=True
    )


# Several answers and a vote


@pytest.mark.parametrize(("method", "prompt"), [("self_consistency", "STEPS "), ("majority", "Q ")])
def test_samples_are_drawn_apart_and_put_to_the_vote(method: Method, prompt: str) -> None:
    played = play(baseline(method), TASK, saying(**answers("43", "44", "43.0", "45", "44")), seed=3)
    assert played.asked() == counted(played) == [f"0.answer.{seat}" for seat in range(5)]
    assert {told(ask) for ask in played.asks} == {prompt + TASK.question}
    assert len({ask.sampling.seed for ask in played.asks}) == 5
    assert played.debate.edges == []
    assert (played.verdict.aggregator, played.verdict.support, played.verdict.votes) == (method, 2, 5)
    assert played.verdict.tie and played.verdict.answer in ("43", "44")


def test_samples_that_fail_or_cannot_be_read_do_not_vote() -> None:
    played = play(baseline("self_consistency"), TASK, saying(**answers("44", "-", "none", "44", "43")))
    assert (played.verdict.answer, played.verdict.support, played.verdict.votes) == ("44", 2, 3)


def test_a_matched_majority_answers_as_often_as_the_debate() -> None:
    for agents, rounds in ((3, 2), (4, 4), (1, 1)):
        machine = baseline("majority", match=Match(agents=agents, rounds=rounds))
        calls = Society.max_asks(SocietySettings(rounds=rounds), {"generator": ["x"] * agents})
        assert len(play(machine, TASK, lambda ask: "43").asks) == Baseline.max_asks(machine.settings, {}) == calls


def test_what_came_before_the_budget_was_spent_is_counted() -> None:
    played = play(baseline("majority"), TASK, lambda ask: "43", budget_at=3)
    assert (played.verdict.stop_reason, played.verdict.votes, played.verdict.aggregator) == ("budget", 2, "majority")


@pytest.mark.parametrize("method", get_args(Method))
def test_no_reply_at_all_leaves_no_answer(method: Method) -> None:
    played = play(baseline(method), TASK, failure_of)
    assert (played.verdict.answer, played.verdict.stop_reason, played.verdict.votes) == (None, "no_replies", 0)
    assert played.verdict.correct is False


# Looking again


def test_self_reflection_reviews_its_answer_in_the_same_chat() -> None:
    played = play(baseline("self_reflect", rounds=3), TASK, saying(answer_0="44", review_1="45", review_2="43"))
    assert played.asked() == counted(played) == ["0.answer.0", "1.answer.0", "2.answer.0"]
    assert [message.text for message in played.asks[2].messages] == [f"Q {TASK.question}", "44", "AGAIN", "45", "AGAIN"]
    assert edges(played, "2.answer.0") == {("1.answer.0", "memory")}
    assert played.verdict == Verdict(
        answer="43", stop_reason="rounds", aggregator="self_reflect", support=1, votes=1, correct=True
    )


def test_an_answer_stands_where_its_review_does_not_come() -> None:
    played = play(baseline("self_reflect", rounds=4), TASK, saying(answer_0="44", review_1="43"))
    assert len(played.asks) == 3
    assert (played.verdict.answer, played.verdict.stop_reason) == ("43", "failures")


def test_a_review_that_cannot_be_read_is_the_last_word_all_the_same() -> None:
    played = play(baseline("self_reflect"), TASK, saying(answer_0="43", review_1="no idea"))
    assert (played.verdict.answer, played.verdict.correct, played.verdict.votes) == (None, False, 0)


def test_self_reflection_may_stop_when_right_and_says_that_it_used_gold() -> None:
    said = saying(answer_0="44", review_1="43", review_2="45", review_3="45")
    played = play(baseline("self_reflect", rounds=4, stop=("oracle",)), TASK, said)
    assert len(played.asks) == 2
    assert (played.verdict.answer, played.verdict.stop_reason, played.verdict.oracle) == ("43", "oracle", True)


# Scores


def test_the_candidate_with_the_highest_score_wins() -> None:
    said = saying(**answers("44", "44", "43"), score_0="Score: 10", score_1="Score: 20", score_2="Score: 90")
    played = play(baseline("rerank", samples=3, scorer="bo"), TASK, said)
    assert played.asked()[3:] == ["0.score.0", "0.score.1", "0.score.2"]
    assert {ask.agent for ask in played.asks[3:]} == {"bo"}
    assert told(played.ask("0.score.2")) == f"SCORE {TASK.question}: 43"
    assert edges(played, "0.score.2") == {("0.answer.2", "saw")}
    assert counted(played) == ["0.answer.0", "0.answer.1", "0.answer.2"]
    assert played.verdict == Verdict(
        answer="43",
        stop_reason="rounds",
        aggregator="rerank",
        support=1,
        votes=1,
        correct=True,
        details={"score": "90"},
    )


def test_without_a_scorer_the_solver_scores_itself() -> None:
    played = play(baseline("rerank", samples=2), TASK, lambda ask: "50")
    assert [(ask.agent, ask.role) for ask in played.asks[2:]] == [("ada", "solver")] * 2


def test_equal_scores_are_put_to_the_vote() -> None:
    scores = {f"score_{number}": f"Score: {score}" for number, score in enumerate((80, 80, 30, 80))}
    played = play(baseline("rerank", samples=4), TASK, saying(**answers("43", "44", "44", "43.0"), **scores))
    assert (played.verdict.answer, played.verdict.support, played.verdict.votes) == ("43", 2, 3)
    assert not played.verdict.tie


@pytest.mark.parametrize(("tie_break", "winner"), [("first", "43"), ("lexicographic", "44")])
def test_candidates_that_nothing_tells_apart_go_by_the_tie_break(tie_break: str, winner: str) -> None:
    said = saying(**answers("43", "44"), score_0="70", score_1="70")
    played = play(baseline("rerank", samples=2, tie_break=tie_break), TASK, said)
    assert played.verdict.tie and played.verdict.answer == winner


def test_what_cannot_be_read_is_not_scored_and_what_is_not_scored_does_not_win() -> None:
    said = saying(**answers("none", "44", "44", "43"), score_1="hard to tell", score_1_again="very", score_3="Score: 1")
    played = play(baseline("rerank", samples=4), TASK, said)
    assert played.asked()[4:] == ["0.score.1", "0.score.2", "0.score.3", "0.score.1~1"]
    assert (played.verdict.answer, played.verdict.details) == ("43", {"score": "1"})


def test_a_score_that_cannot_be_read_is_asked_for_once_more() -> None:
    said = saying(**answers("44", "43"), score_0="Score: 10", score_1="good", score_1_again="Score: 20")
    played = play(baseline("rerank", samples=2), TASK, said)
    assert [message.text for message in played.ask("0.score.1~1").messages][1:] == ["good", "NUMBER"]
    assert (played.verdict.answer, len(played.asks)) == ("43", 5)


def test_without_any_score_the_samples_vote_and_the_verdict_says_so() -> None:
    played = play(baseline("rerank", samples=3), TASK, saying(**answers("44", "44", "43")))
    assert (played.verdict.answer, played.verdict.aggregator) == ("44", "majority_vote")
    assert (played.verdict.votes, played.verdict.details) == (3, {})


def test_a_budget_spent_among_the_scores_goes_by_those_there_are() -> None:
    said = saying(**answers("44", "43", "44"), score_0="Score: 10", score_1="Score: 60", score_2="Score: 99")
    played = play(baseline("rerank", samples=3), TASK, said, budget_at=6)  # after two scores
    assert (played.verdict.stop_reason, played.verdict.answer) == ("budget", "43")


# Knowledge for translations

GERMAN = Task(id="g", question="Translate into English: Es regnet.", gold=("It rains.",), answer_format="text")


def test_a_translation_is_drawn_plain_and_with_each_kind_of_knowledge() -> None:
    said = saying(
        keywords_0="regnen: to rain",
        topics_0="weather",
        demonstration_0="Es schneit. It snows.",
        answer_plain="It pours.",
        answer_keywords="It rains.",
        answer_topics="Rain falls.",
        answer_demonstration="It is rain.",
        score_plain="Score: 60",
        score_keywords="Score: 95",
        score_topics="Score: 70",
        score_demonstration="Score: 10",
    )
    played = play(baseline("maps", scorer="bo"), GERMAN, said)
    seats = ["plain", "keywords", "topics", "demonstration"]
    assert played.asked() == [
        *("0.keywords.0", "0.topics.0", "0.demonstration.0"),
        *(f"0.answer.{seat}" for seat in seats),
        *(f"0.score.{seat}" for seat in seats),
    ]
    assert len(played.asks) == Baseline.max_asks(played.machine.settings, {})  # type: ignore[attr-defined]
    assert told(played.ask("0.answer.plain")) == f"Q {GERMAN.question}"
    assert told(played.ask("0.answer.topics")) == f"Q {GERMAN.question} KNOWN weather"
    assert edges(played, "0.answer.topics") == {("0.topics.0", "saw")}
    assert counted(played) == [f"0.answer.{seat}" for seat in seats]
    assert (played.verdict.answer, played.verdict.aggregator) == ("It rains", "maps")


def test_knowledge_that_did_not_come_makes_no_candidate() -> None:
    said = saying(topics_0="weather", answer_plain="It pours.", answer_topics="It rains.", score_topics="Score: 1")
    played = play(baseline("maps"), GERMAN, said)
    assert counted(played) == ["0.answer.plain", "0.answer.topics"]
    alone = play(baseline("maps"), GERMAN, saying(answer_plain="It pours."))
    assert counted(alone) == ["0.answer.plain"]
    assert (alone.verdict.answer, alone.verdict.aggregator) == ("It pours", "majority_vote")


# Reading a score


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("Score: 85", "85"),
        ("85", "85"),
        ("**Score**: 085", "85"),
        ("Score: 85/100", "85"),
        ("I give 85 out of 100.", "85"),
        ("Score (0-100): 7", "7"),
        ("From 0 to 100 the score is 40.", "40"),
        ("It says 24 + 19 = 43.\nScore: 100", "100"),
        ("Score: 10, no, score: 20", "20"),
        ("Score: 101", None),
        ("Score: -5", None),
        ("Score: 8.5", None),
        ("Score: 1,000", None),
        ("24 + 19 = 43", None),
        ("0.9", None),
        ("", None),
        ("sure", None),
    ],
)
def test_a_score_is_read(text: str, score: str | None) -> None:
    assert read_score(text).value == score


@given(st.text() | st.from_regex(r"(?i)(score|\d|[ :/.,-]|to|out of){0,60}", fullmatch=True))
def test_reading_a_score_never_fails(text: str) -> None:
    found = read_score(text)
    assert found == Answer() or 0 <= int(found.value or "") <= 100


def test_reading_a_score_does_not_hang() -> None:
    for piece in ("score ", "0 ", "1", "0-", "score: ", " " * 50, "(0 to "):
        read_score(piece * 40_000)


# What is refused, and what is shipped


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"samples": 0}, "samples=0"),
        ({"rounds": 0}, "rounds=0"),
        ({"method": "rerank", "match": Match(agents=3, rounds=2)}, "does not vote"),
        ({"method": "single", "stop": ("oracle",)}, "nothing to stop"),
        ({"method": "self_reflect", "stop": ("unanimity",)}, "nothing to stop"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        BaselineSettings(**settings)
    with pytest.raises(ValueError, match="agents=0 must be a number from 1 to"):
        Match(agents=0, rounds=2)


def test_a_cast_that_does_not_fit_is_refused() -> None:
    greedy = {"solver": (Player(name="ada", sampling=Sampling(temperature=0.0)),)}
    with pytest.raises(ConfigError, match=r"agents\.ada\.temperature=0 draws the same answer 5 times"):
        Baseline(BaselineSettings(), greedy, PLAIN)
    for method in ("single", "self_reflect", "maps"):
        Baseline(BaselineSettings(method=method), greedy, PLAIN)
    with pytest.raises(ConfigError, match=r"cast\.scorer has nothing to do"):
        baseline("majority", scorer="bo")


def test_a_method_that_the_prompts_say_nothing_for_is_refused() -> None:
    numbers = load_protocol_prompts("baseline", BaselineSettings())
    with pytest.raises(ConfigError, match="method=maps needs the part 'keywords'"):
        baseline("maps", prompts=numbers)


@pytest.mark.parametrize(
    ("name", "method"),
    [
        *((f"baseline.{kind}.en", method) for kind in ("number", "sum") for method in get_args(Method)[:-1]),
        *(("baseline.translation.en", method) for method in get_args(Method)),
    ],
)
def test_the_shipped_prompts_show_what_they_must(name: str, method: Method) -> None:
    prompts = load_protocol_prompts("baseline", BaselineSettings(prompts=name))
    task = Task(id="t", question="QUESTION", images=(ImagePart(sha256="ab"),))
    played = play(baseline(method, prompts=prompts), task, lambda ask: f"[{node_of(ask)}]\nScore: 43")
    for ask in played.asks:
        assert "QUESTION" in ask.messages[-1].text
        step, seat = node_of(ask).split(".")[1:]
        if step == "score":
            assert f"[0.answer.{seat}]" in ask.messages[-1].text
        assert any(message.images for message in ask.messages)
