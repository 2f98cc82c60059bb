"""The preference trees that a run has on record, as rows; how many they are beside what plain distillation has."""

from __future__ import annotations

from pathlib import Path

import msgspec

from engine.config.base_model import base_model_of
from engine.config.recipe import TrainSettings
from engine.config.recipe_file import build_recipe
from engine.config.sections import read_section
from engine.record.folder import RunFolder
from protocols.errors import ConfigError
from protocols.formats.rows import Label
from protocols.graph import Debate
from trainers.selection.context_pack import CountTokens
from trainers.selection.preference import Amplification, Prompter, amplification_of, select_preferences, shows_blocks
from trainers.selection.preference_row import Preference


class RecordedTrees:
    """Rows of one run, by its recipe's ``train.tree``; ``counted`` sums up those that were asked for.

    Prompts of later rounds are written again and packed where the run debated with a prompt set that shows blocks of
    answers. An import has no prompt set: its prompts stay as its file has them.

    Args:
        train: in place of the recipe's.
    Raises: ConfigError: what the recipe names has gone, or the model whose tokens count cannot be told.
    """

    def __init__(self, folder: RunFolder, train: TrainSettings) -> None:
        self._train = train
        self._prompter = _prompter_of(folder)
        self.counted = Amplification()

    def of(self, debate: Debate) -> dict[str, list[Preference]]:
        """The rows of one debate, by who learns."""
        chosen = select_preferences(self._train, debate, self._train.tree, self._prompter)
        for agent, rows in chosen.items():
            self.counted += amplification_of(debate, agent, self._train, rows)
        return chosen


def train_settings(folder: RunFolder, label: Label) -> TrainSettings:
    """What a run's recipe says of training, but for what makes an answer right."""
    manifest = folder.manifest
    train = read_section(manifest.recipe.get("train", {}), TrainSettings, manifest.recipe_path, "train")
    return msgspec.structs.replace(train, label=label)


def _prompter_of(folder: RunFolder) -> Prompter | None:
    manifest = folder.manifest
    if "protocol" not in manifest.recipe:
        return None
    where = Path(manifest.recipe_path)
    recipe = build_recipe(manifest.recipe, where=str(where), folder=where.parent)
    return Prompter(recipe.prompts, _counter(base_model_of(recipe))) if shows_blocks(recipe.prompts) else None


def _counter(base_model: str) -> CountTokens:
    """Raises: ConfigError: no tokenizer there."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(base_model)
    except (OSError, ValueError) as err:
        reason = (str(err).strip().splitlines() or [repr(err)])[0]
        raise ConfigError(
            f"the tokenizer of {base_model!r}, whose tokens prompts are packed by, cannot be loaded: {reason}; set "
            "train.base_model to a folder in Hugging Face layout"
        ) from err
    return lambda text: len(tokenizer(text, add_special_tokens=False)["input_ids"])
