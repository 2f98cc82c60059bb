"""The datasets that moot knows by name, as data: where each lies, what its fields are, how it is graded.

A row is first mended (``engine/data/datasets_mend.py``), where a publisher spells things in a way of its own; all
else is data. Field names and splits are those of the publishers' files.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import msgspec

from engine.data import datasets_mend as mend
from engine.data.datasets_mend import Row, as_it_is
from engine.data.task_rows import Fields


class Dataset(msgspec.Struct, frozen=True, kw_only=True):
    """One dataset. ``train_split`` and ``test_split`` name the same where the two sides are cut from one split."""

    fields: Fields
    hub: str = ""  # "": not on the hub as far as we know; give tasks.path
    configs: tuple[str, ...] = ("",)
    train_split: str = "train"
    test_split: str = "test"
    mend: Callable[[Row], Row | None] = as_it_is  # None leaves the row out
    items: str = ""  # where in the publisher's JSON file the list is
    pairs: bool = False  # line-aligned text
    licence: str = ""  # "": not known for certain; read the dataset's own page


MATH_SUBJECTS = (
    "algebra",
    "counting_and_probability",
    "geometry",
    "intermediate_algebra",
    "number_theory",
    "prealgebra",
    "precalculus",
)
# fmt: off
MMMU_SUBJECTS = (
    "Accounting", "Agriculture", "Architecture_and_Engineering", "Art", "Art_Theory", "Basic_Medical_Science",
    "Biology", "Chemistry", "Clinical_Medicine", "Computer_Science", "Design",
    "Diagnostics_and_Laboratory_Medicine", "Economics", "Electronics", "Energy_and_Power", "Finance",
    "Geography", "History", "Literature", "Manage", "Marketing", "Materials", "Math", "Mechanical_Engineering",
    "Music", "Pharmacy", "Physics", "Psychology", "Public_Health", "Sociology",
)
# fmt: on
CMMMU_SUBJECTS = (
    "art_and_design",
    "business",
    "health_and_medicine",
    "humanities_and_social_sciences",
    "science",
    "technology_and_engineering",
)


def _big_bench_hard(task: str, *, options: bool = True) -> Dataset:
    return Dataset(
        hub="SaylorTwift/bbh",
        configs=(task,),
        train_split="test",
        items="examples",
        fields=Fields(
            question="input",
            answer="target",
            choices_in_question=options,
            answer_is="letter" if options else "auto",
            answer_format="choice" if options else "number",
        ),
        licence="MIT",
    )


DATASETS: Mapping[str, Dataset] = {
    "gsm8k": Dataset(
        hub="openai/gsm8k",
        configs=("main",),
        fields=Fields(answer_after="####", answer_format="number"),
        licence="MIT",
    ),
    "math": Dataset(
        hub="EleutherAI/hendrycks_math",
        configs=MATH_SUBJECTS,
        mend=mend.math_row,
        fields=Fields(
            question="problem",
            answer="solution",
            answer_in="boxed",
            answer_format="math",
            details={"level": "level", "subject": "type"},
        ),
        licence="MIT",
    ),
    "math500": Dataset(
        hub="HuggingFaceH4/MATH-500",
        train_split="test",
        fields=Fields(
            question="problem",
            answer_format="math",
            details={"level": "level", "subject": "subject", "source_id": "unique_id"},
        ),
    ),
    "mmlu": Dataset(
        hub="cais/mmlu",
        configs=("all",),
        train_split="test",
        fields=Fields(choices="choices", answer_is="index", answer_format="choice", details={"subject": "subject"}),
        licence="MIT",
    ),
    "mmlu_pro": Dataset(
        hub="TIGER-Lab/MMLU-Pro",
        train_split="test",
        fields=Fields(
            choices="options",
            answer_is="letter",
            answer_format="choice",
            details={"category": "category", "source": "src", "source_id": "question_id"},
        ),
        licence="MIT",
    ),
    "arc_challenge": Dataset(
        hub="allenai/ai2_arc",
        configs=("ARC-Challenge",),
        mend=mend.arc_row,
        fields=Fields(
            choices="choices",
            answer="answerKey",
            answer_is="letter",
            answer_format="choice",
            details={"source_id": "id"},
        ),
        licence="CC BY-SA 4.0",
    ),
    "strategyqa": Dataset(
        hub="ChilleD/StrategyQA",
        fields=Fields(answer_format="yes_no", details={"term": "term", "source_id": "qid"}),
    ),
    "commonsenseqa": Dataset(
        hub="tau/commonsense_qa",
        test_split="validation",
        mend=mend.commonsense_row,
        fields=Fields(
            choices="choices",
            answer="answerKey",
            answer_is="letter",
            answer_format="choice",
            details={"concept": "question_concept", "source_id": "id"},
        ),
        licence="MIT",
    ),
    "ecqa": Dataset(
        hub="yangdong/ecqa",
        fields=Fields(
            question="q_text",
            choices=("q_op1", "q_op2", "q_op3", "q_op4", "q_op5"),
            answer="q_ans",
            answer_is="text",
            answer_format="choice",
            details={"concept": "q_concept", "source_id": "q_no"},
        ),
    ),
    "bbh_penguins_in_a_table": _big_bench_hard("penguins_in_a_table"),
    "bbh_date_understanding": _big_bench_hard("date_understanding"),
    "bbh_reasoning_about_colored_objects": _big_bench_hard("reasoning_about_colored_objects"),
    "bbh_multistep_arithmetic_two": _big_bench_hard("multistep_arithmetic_two", options=False),
    "addsub": Dataset(
        train_split="test",
        fields=Fields(question="sQuestion", answer="lSolutions", details={"source_id": "iIndex"}),
    ),
    "ciar": Dataset(
        train_split="test",
        mend=mend.ciar_row,
        fields=Fields(
            answer_format="number",
            details={
                "explanation": "explanation",
                "incorrect_answers": "incorrect_answers",
                "incorrect_explanation": "incorrect explanation",
            },
        ),
    ),
    "commonmt": Dataset(
        train_split="test",
        mend=mend.commonmt_row,
        pairs=True,
        fields=Fields(
            answer_format="text",
            details={"line": "line", "source_language": "source_language", "target_language": "target_language"},
        ),
    ),
    "mmmu": Dataset(
        hub="MMMU/MMMU",
        configs=MMMU_SUBJECTS,
        train_split="validation",
        test_split="validation",
        mend=mend.mmmu_row,
        fields=Fields(
            choices="options",
            images=tuple(f"image_{number}" for number in range(1, 8)),
            answer_is="letter",
            answer_format="auto",
            details={"subfield": "subfield", "difficulty": "topic_difficulty", "source_id": "id"},
        ),
        licence="Apache-2.0",
    ),
    "mathvista": Dataset(
        hub="AI4Math/MathVista",
        train_split="testmini",
        test_split="testmini",
        mend=mend.mathvista_row,
        fields=Fields(
            choices="choices",
            images="decoded_image",
            answer_is="text",
            answer_format="auto",
            tolerance="tolerance",
            details={"task": "metadata.task", "category": "metadata.category", "unit": "unit", "source_id": "pid"},
        ),
        licence="CC BY-SA 4.0",
    ),
    "cmmmu": Dataset(
        hub="m-a-p/CMMMU",
        configs=CMMMU_SUBJECTS,
        train_split="val",
        test_split="val",
        mend=mend.cmmmu_row,
        fields=Fields(
            choices="choices",
            images=tuple(f"image_{number}" for number in range(1, 6)),
            answer_is="letter",
            answer_format="auto",
            details={"category": "category", "subcategory": "subcategory", "source_id": "id"},
        ),
    ),
    "m2d": Dataset(
        train_split="test",
        mend=mend.m2d_row,
        fields=Fields(
            choices="choices",
            images="image_name",
            answer_is="text",
            answer_format="auto",
            details={"domain": "data_domain", "source_id": "question_id"},
        ),
    ),
}
"""Name in a recipe -> dataset."""
