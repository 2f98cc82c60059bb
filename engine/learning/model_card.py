"""The card of an adapter or of a merged model: a README with front matter, written from the lineage alone."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from trainers.record.registry import AdapterRecord

TAGS = ("moot", "multi-agent-debate", "lora")


def model_card(
    lineage: Sequence[AdapterRecord], *, base_id: str, merged: bool, results: Mapping[str, str] | None = None
) -> str:
    """The page as text.

    Args:
        lineage: the adapter first, then what it was trained on from, down to fresh weights.
        base_id: the base's name on the hub, "" where it has none: a path says nothing to others.
        merged: whether the weights are those of base and adapter together.
        results: measure -> its figure on held-out tasks.
    """
    import yaml

    record = lineage[0]
    alone = merged or record.whole
    front = {
        **({"base_model": base_id, "base_model_relation": "finetune" if alone else "adapter"} if base_id else {}),
        "library_name": "transformers" if alone else "peft",
        "pipeline_tag": "text-generation",
        "tags": list(TAGS[:2] if alone else TAGS),
    }
    parts = [
        f"---\n{yaml.safe_dump(front, sort_keys=False)}---",
        f"# {_cell(record.name)}",
        _opening(record, base_id, merged=merged),
        "## Where it comes from",
        "Newest first. Hashes are SHA-256: of the rows in the order they were trained on, the recipe, the weights.",
        _table(
            ("adapter", "went on from", "rule", "rows", "data", "recipe", "weights", "trained", "figures"),
            [_line(item) for item in lineage],
        ),
    ]
    if results:
        parts += [
            "## On held-out tasks",
            "Tasks that nobody learned from, with 95 % intervals; a reply that could not be read counts as wrong.",
            _table(("measure", "accuracy"), list(results.items())),
        ]
    return "\n\n".join([*parts, "## Use", _use(base_id, alone=alone)]) + "\n"


def _opening(record: AdapterRecord, base_id: str, *, merged: bool) -> str:
    what = "A model: its base with the LoRA adapter merged in" if merged else "A LoRA adapter in PEFT layout"
    base = f"`{base_id}`" if base_id else "its base"
    if record.whole:
        return (
            f"A model, all weights of which moot trained on what agent `{_cell(record.agent)}` said in debates between "
            f"language models. It began as the weights of {base} whose files have the hash `{record.base_hash}`."
        )
    return (
        f"{what}, trained by moot on what agent `{_cell(record.agent)}` said in debates between language models. It "
        f"was trained on weights of {base} whose files have the hash `{record.base_hash}`; other weights of the same "
        "name, rounded otherwise for instance, give other replies."
    )


def _line(record: AdapterRecord) -> tuple[str, ...]:
    return (
        f"`{record.name}`",
        f"`{record.parent}`" if record.parent else "the base",
        record.rule,
        str(record.rows),
        f"`{record.data_hash[:12]}`",
        f"`{record.recipe_hash[:12]}`",
        f"`{record.checksum[:12]}`",
        time.strftime("%Y-%m-%d", time.gmtime(record.created_at)),
        ", ".join(f"{name} {value:.4g}" for name, value in record.metrics.items()),
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(map(_cell, row))} |" for row in [head, ["---"] * len(head), *rows])


def _cell(text: str) -> str:
    """Names come from recipes: none ends a cell or begins markup."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def _use(base_id: str, *, alone: bool) -> str:
    base = base_id or "BASE"
    if alone:
        lines = [
            "from transformers import AutoModelForCausalLM",
            "",
            'model = AutoModelForCausalLM.from_pretrained(".")',
        ]
    else:
        lines = [
            "from peft import PeftModel",
            "from transformers import AutoModelForCausalLM",
            "",
            f'model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("{base}"), ".")',
        ]
    return "\n".join(["```python", *lines, "```"])
