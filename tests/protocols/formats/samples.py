"""Files of other systems, written for the tests: as those systems lay them out, with words of our own."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import strategies as st

from protocols.graph import Debate


def dumped(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def edges(debate: Debate, target: str) -> list[tuple[str, str]]:
    return [(edge.source, edge.kind) for edge in debate.edges if edge.target == target]


def ids(debate: Debate) -> list[str]:
    return [node.id for node in debate.utterances]


def chat(*texts: str, system: str = "") -> list[dict[str, str]]:
    """User and assistant in turn."""
    rows = [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(texts)]
    return ([{"role": "system", "content": system}] if system else []) + rows


def published_mad() -> dict[str, Any]:
    """Two rounds and a judge, as in the published logs."""
    return {
        "model_name": "some-model",
        "temperature": 0,
        "num_players": 3,
        "source": "下海",
        "correct reference": "go into business",
        "incorrect reference": "go to sea",
        "base translation": "go to sea",
        "debate translation": "go into business",
        "reason": "idiom",
        "players": {
            "Affirmative side": chat("translate", "go to sea", "why?", "A0", "N0", "A1", system="debater"),
            "Negative side": chat("A0", "N0", "A1", "N1", system="debater"),
            "Moderator": chat("A0 N0", "{'Supported Side': ''}", "A1 N1", "{'Supported Side': ''}", system="moderator"),
            "Judge": chat("A0 N0?", "two candidates", "which?", '{"Reason": "idiom"}', system="moderator"),
        },
    }


def translation_mad() -> dict[str, Any]:
    """One round that the moderator ends, as the released code writes it, its prompts included."""
    return {
        "start_time": "2024-01-01_10:00:00",
        "end_time": "2024-01-01_10:01:00",
        "model_name": "some-model",
        "temperature": 0,
        "num_players": 3,
        "success": True,
        "src_lng": "Chinese",
        "tgt_lng": "English",
        "source": "下海",
        "reference": "go into business",
        "base_translation": "go to sea",
        "debate_translation": "go into business",
        "Reason": "idiom",
        "Supported Side": "Negative",
        "debate_topic": "How is ##source## said?",
        "players": {
            "Baseline": chat("translate", "go to sea"),
            "Affirmative side": chat("restate: go to sea", "A0", system="debater"),
            "Negative side": chat("A0", "N0", system="debater"),
            "Moderator": chat("A0 N0", "{'Supported Side': 'Negative'}", system="moderator"),
        },
    }


def question_mad() -> dict[str, Any]:
    """A question: the affirmative side's opening is the base answer; nobody decided."""
    return {
        "debate_topic": "How many?",
        "base_answer": "A0",
        "debate_answer": "",
        "Reason": "",
        "Supported Side": "",
        "success": False,
        "num_players": 3,
        "model_name": "m",
        "players": {
            "Affirmative side": chat("How many?", "A0", system="d"),
            "Negative side": chat("A0", "N0", system="d"),
            "Moderator": chat("A0 N0", "none yet", system="m"),
        },
    }


def maft() -> dict[str, Any]:
    """Three agents, two rounds; the third was shown a summary. And a question without a solution in a box."""
    said = [r"I say \boxed{4}", r"I think \boxed{5}", r"so \boxed{4}"]
    shown = [f"others: {said[1]} {said[2]}", f"others: {said[0]}", "all in all, four"]
    contexts = [chat("What is 2 + 2?", said[n], shown[n], r"still \boxed{4}") for n in range(3)]
    return {
        "What is 2 + 2?": [contexts, r"It is \boxed{4}."],
        "How many?": [[chat("How many?", "no idea")], "one, then two\n#### 3"],
        "A person": [chat("Who?", "- a fact"), chat("Who?", "- another"), chat("Who?", "- a third")],
    }


def mag_row() -> dict[str, Any]:
    """Two agents; one is wrong, is criticised and reflects, and then all are right."""
    return {
        "id": 7,
        "question": "Which? A) x B) y",
        "gold_answer": "B",
        "MMLU_Pro_id": 123,
        "gpt_output_0": {"reasoning": "y it is", "answer": "B"},
        "gpt_raw_0": "### Answer\ny it is\nFinal answer: $B$",
        "mini_output_0": {"reasoning": None, "answer": "A"},
        "mini_raw_0": "A!",
        "right_0": {"gpt": True, "mini": False},
        "critique_pool_0": [
            ["gpt", "mini", "look again", "### Feedback\nlook again"],
            ["mini", "mini", None, "???"],
        ],
        "debate_last_round_1": "Answer 1: A\nAnswer 2: B, look again",
        "gpt_output_1": {"reasoning": "as before", "answer": "B"},
        "gpt_raw_1": "### Answer\nas before\nFinal answer: $B$",
        "mini_output_1": {"reasoning": "I see", "answer": "B"},
        "mini_raw_1": "I see\nFinal answer: B",
        "right_1": {"gpt": True, "mini": True},
        "stop": True,
    }


def magdi() -> list[dict[str, Any]]:
    """The second debate ended after round 0, where one agent failed."""
    first: dict[str, Any] = {"question": "Is it?", "gold_answer": "yes", "source": "made up"}
    for number, said in enumerate((("yes", "no", "no"), ("yes", "yes", "no"))):
        for agent, answer in zip(("gpt4", "claude", "bard"), said, strict=True):
            first[f"{agent}_output_{number}"] = {"reasoning": f"because {number}", "answer": answer}
    second = {
        "question": "Was it?",
        "gold_answer": "no",
        "gpt4_output_0": {"reasoning": "old", "answer": "no"},
        "claude_output_0": {"reasoning": None, "answer": None},
        "bard_output_0": {"reasoning": "none", "answer": None},
    }
    return [first, second]


def m2d() -> dict[str, Any]:
    """Two rounds of two debaters; the judge finds them consistent after the second."""
    question = "Which <image>?\nChoices:\n(A) cat\n(B) dog"
    return {
        "args": {
            "max_round": 3,
            "max_tokens": 1024,
            "temperature": 1.0,
            "gpt4v_key": "sk-THE-SECRET",
            "deployment": {"api_token": "sk-THE-SECRET", "name": "eu"},
            "azure": [{"Client-Secret": "sk-THE-SECRET"}],
        },
        "debate_process": [
            {
                "data_domain": "Art",
                "question_id": "val_7",
                "question_type": "multi_choice",
                "question": question,
                "choices": ["cat", "dog"],
                "answer": "dog",
                "image_path": ["data/images/a.png"],
                "stop_round": 2,
                "Round_0": {
                    "User_0": "look",
                    "Agent_0": "fur: [(A) cat]",
                    "User_1": "look",
                    "Agent_1": "tail: [B]",
                    "Judge_Instruction": "same?",
                    "Judge_Response": "They differ. [No]",
                },
                "Round_1": {
                    "User_0": "again",
                    "Agent_0": "a dog [dog]",
                    "User_1": "again",
                    "Agent_1": "[(B) dog]",
                    "Judge_Instruction": "same?",
                    "Judge_Response": "[Yes]",
                },
                "Summary": {"User": "sum up", "Assistant": "Both say [(B) dog]"},
                "llm_answer": "(B) dog",
            },
            {
                "data_domain": "Math",
                "question_id": 8,
                "question_type": "open",
                "question": "How long?",
                "choices": [],
                "answer": 3,
                "image_path": [],
                "stop_round": 1,
                "Round_0": {"User_0": "look", "Agent_0": "cannot say", "User_1": "look", "Agent_1": "[4]"},
                "Summary": {"User": "sum up", "Assistant": "unclear"},
                "llm_answer": "None",
                "Chain_of_Debate": "1. nobody knows",
            },
        ],
    }


def llava() -> list[dict[str, Any]]:
    return [
        {
            "id": "a_1",
            "image": "a.png",
            "question_type": "open",
            "conversations": [
                {"from": "human", "value": "<image>\nWhat is it?"},
                {"from": "gpt", "value": "1. fur\nFinal Answer: [a dog]"},
            ],
        },
        {
            "conversations": [
                {"from": "system", "value": "be kind"},
                {"from": "user", "value": "Hi"},
                {"from": "gpt", "value": "Hello"},
                {"from": "human", "value": "And now?"},
                {"from": "gpt", "value": "Now that."},
                {"from": "human", "value": "never answered"},
            ],
        },
    ]


# Any file of a format

_WORDS = st.text(max_size=30)
_CHATS = st.lists(_WORDS, min_size=2, max_size=7).map(lambda texts: chat(*texts))
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | _WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_WORDS, inner, max_size=3),
    max_leaves=5,
)
_MORE = st.dictionaries(st.text("abcXYZ_ ", max_size=8), _JSON, max_size=3)
_ANSWERS = st.none() | st.integers(-9, 9) | st.floats(-9, 9) | _WORDS


@st.composite
def any_mad(draw: st.DrawFn) -> dict[str, Any]:
    row: dict[str, Any] = draw(st.sampled_from([published_mad, translation_mad, question_mad]))()
    row["players"] = {
        name: draw(_CHATS) for name in row["players"] if name == "Affirmative side" or draw(st.booleans())
    }
    for key in list(row):
        if key not in ("players", "source", "debate_topic", "base translation") and draw(st.booleans()):
            row[key] = draw(_JSON)
    return {**draw(_MORE), **row}


@st.composite
def any_maft(draw: st.DrawFn) -> dict[str, Any]:
    entries = st.tuples(st.lists(_CHATS, min_size=1, max_size=3), st.none() | _WORDS).map(list)
    found: dict[str, Any] = draw(
        st.dictionaries(_WORDS, entries | st.lists(_CHATS, min_size=3, max_size=3), min_size=1, max_size=3)
    )
    return found


@st.composite
def any_mag(draw: st.DrawFn) -> dict[str, Any]:
    agents, rounds = (
        draw(st.lists(st.sampled_from(["a", "b_2", "c d"]), min_size=1, unique=True)),
        draw(st.integers(1, 3)),
    )
    row: dict[str, Any] = draw(_MORE) | {"id": draw(_JSON), "question": draw(_WORDS), "gold_answer": draw(_ANSWERS)}
    for number in range(rounds):
        for agent in agents:
            row[f"{agent}_output_{number}"] = {"reasoning": draw(st.none() | _WORDS), "answer": draw(_ANSWERS)}
            if draw(st.booleans()):
                row[f"{agent}_raw_{number}"] = draw(_WORDS)
        pairs = draw(st.lists(st.tuples(st.sampled_from(agents), st.sampled_from(agents)), unique=True, max_size=4))
        row[f"critique_pool_{number}"] = [[*pair, draw(st.none() | _WORDS), draw(_WORDS)] for pair in pairs]
        if draw(st.booleans()):
            row[f"right_{number}"] = {agent: draw(st.booleans()) for agent in agents}
        if number and draw(st.booleans()):
            row[f"debate_last_round_{number}"] = draw(_WORDS)
    return row | {"stop": draw(st.booleans())}


@st.composite
def any_magdi(draw: st.DrawFn) -> list[dict[str, Any]]:
    row: dict[str, Any] = draw(_MORE) | {"question": draw(_WORDS), "gold_answer": draw(_ANSWERS)}
    for number in range(draw(st.integers(1, 4))):
        for agent in ("gpt4", "claude", "bard"):
            if agent == "gpt4" or draw(st.booleans()):
                row[f"{agent}_output_{number}"] = {"reasoning": draw(_WORDS), "answer": draw(_ANSWERS)}
    return [row]


@st.composite
def any_m2d(draw: st.DrawFn) -> dict[str, Any]:
    item: dict[str, Any] = draw(_MORE) | {"question": draw(_WORDS), "answer": draw(_JSON)}
    item |= {
        key: draw(_JSON) for key in ("question_id", "stop_round", "llm_answer", "image_path") if draw(st.booleans())
    }
    item["choices"] = draw(st.lists(_WORDS, max_size=4))
    seats = range(draw(st.integers(1, 3)))
    for number in range(draw(st.integers(1, 3))):
        row = {f"User_{seat}": draw(_WORDS) for seat in seats} | {f"Agent_{seat}": draw(_WORDS) for seat in seats}
        judged = {"Judge_Instruction": draw(_WORDS), "Judge_Response": draw(_WORDS)} if draw(st.booleans()) else {}
        item[f"Round_{number}"] = row | judged
    if draw(st.booleans()):
        item["Summary"] = {"User": draw(_WORDS), "Assistant": draw(_WORDS)}
    if draw(st.booleans()):
        item["Chain_of_Debate"] = draw(_WORDS)
    return {"args": draw(_MORE), "debate_process": [item]}


@st.composite
def any_llava(draw: st.DrawFn) -> list[dict[str, Any]]:
    turns = st.sampled_from(["human", "gpt", "system", "user", "assistant"])
    rows = draw(st.lists(st.fixed_dictionaries({"from": turns, "value": _WORDS}), max_size=5))
    return [draw(_MORE) | {"conversations": [*rows, {"from": "gpt", "value": draw(_WORDS)}]}]
