"""The recipe: one YAML file that describes a whole run. Strict, typed, checked as a whole before anything starts."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from actors.limits.budget import Budget
from actors.limits.prices import Price, find_price
from engine.config.models import Model, Way
from engine.config.named_protocol import find_protocol
from engine.data.tasks import FileSource, HubSource, TaskSource
from protocols.bounds import UP, check_bounds
from protocols.conversation import Player, ProtocolSettings
from protocols.message import Sampling
from protocols.prompt import PromptSet
from trainers.selection.mix import Mix
from trainers.selection.preference import TreeSettings
from trainers.selection.select import Selection
from trainers.tuning.magdi_settings import MAGDiSettings
from trainers.tuning.sft_settings import SFTSettings
from trainers.tuning.tree_dpo_settings import TreeDPOSettings

MAX_ARENAS, MAX_LANES = 1_000, 1_000  # each is a process, or several
MAX_OPEN = 1_000_000  # debates of one arena, all of them in its memory
MAX_ITERATIONS = 10_000
MAX_MIRROR_EVERY_S = 86_400  # a day: a copy that is further behind is none
MAX_STALENESS = 4  # iterations; one keeps debates and trainings at work, more only even out unequal lengths


class Agent(msgspec.Struct, frozen=True, kw_only=True):
    """Who plays: a model, how its replies are drawn, and who it is told to be."""

    model: str
    sampling: Sampling = Sampling()
    persona: str = ""


class TrainSettings(Selection, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the loop learns, and who: a selection, and how its trainings are spread.

    ``agents`` is by default those who play a role of ``rules``, else the protocol's learners.
    """

    mix: Mix = Mix()  # of what critics corrected and maintained
    tree: TreeSettings = TreeSettings()  # how rounds become preferences
    base_model: str = ""  # folder; default: the model they speak through
    num_lanes: int = 1  # trainings side by side
    cpus_per_lane: float = 1.0
    gpus_per_lane: int = 0
    threads: int = 0  # OpenMP threads of a training process on CPU; 0: one a CPU of the lane
    checkpoint_every: int = 20  # steps

    def __post_init__(self) -> None:
        super().__post_init__()
        check_bounds(self, num_lanes=(1, MAX_LANES), cpus_per_lane=(0, UP), gpus_per_lane=(0, UP), threads=(0, UP))
        check_bounds(self, checkpoint_every=(1, UP))


class LoopSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How often debate and training follow each other. ``init_from``: train on from the last adapter, or afresh."""

    iterations: int = 1
    init_from: Literal["previous", "base"] = "base"
    evaluate: bool = True  # on the held-out tasks, before the first training and after every one
    preferences: bool = False  # each iteration's adapters go on from the preferences of its debates: two trainings
    staleness: int = 0  # of how many iterations trainings may still be under way when debates begin

    def __post_init__(self) -> None:
        check_bounds(self, iterations=(1, MAX_ITERATIONS), staleness=(0, MAX_STALENESS))


class RunSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the work is spread. Nothing here changes a result, so it may differ when a run is resumed."""

    num_arenas: int = 1
    max_open: int = 256  # debates in flight an arena
    sync: Literal["full", "normal"] = "full"  # the journal's: survive loss of power, or the death of processes
    max_journal_mb: int = 0  # an arena's journal refuses to grow beyond; 0: no limit
    mirror: str = ""  # URL of a folder on an object store that the run is copied to; "": nowhere
    mirror_every_s: float = 5.0  # how long what is on record may be in no copy, with the time of an upload
    runs_dir: str = "runs"
    traces: bool = False  # OpenTelemetry spans, sent where the OTEL_* variables say
    budget: Budget = Budget()
    drain_s: float = 15.0  # on SIGTERM, that what is in the models may take to come in
    track: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = ()  # where figures go besides the run's folder
    colocate: Way | None = None  # how local models make room for a loop's trainings

    def __post_init__(self) -> None:
        check_bounds(self, num_arenas=(1, MAX_ARENAS), max_open=(1, MAX_OPEN), drain_s=(0, UP))
        if self.max_journal_mb < 0:
            raise ValueError(f"max_journal_mb={self.max_journal_mb} must not be below 0; 0 is no limit")
        if not 0 < self.mirror_every_s <= MAX_MIRROR_EVERY_S:
            raise ValueError(
                f"mirror_every_s={self.mirror_every_s:g} must be a number above 0, to {MAX_MIRROR_EVERY_S:,}"
            )


class Recipe(msgspec.Struct, frozen=True, kw_only=True):
    """A checked recipe. ``source`` is the plain data it was read from, overrides applied."""

    name: str
    seed: int
    description: str
    tasks: TaskSource
    models: dict[str, Model]
    agents: dict[str, Agent]
    protocol: str
    settings: ProtocolSettings
    prompts: PromptSet
    cast: dict[str, tuple[str, ...]]
    train: TrainSettings
    sft: SFTSettings
    tree_dpo: TreeDPOSettings
    magdi: MAGDiSettings
    loop: LoopSettings
    run: RunSettings
    prices: dict[str, Price]
    source: dict[str, Any]
    known_as: str = ""  # the fingerprint of the run that goes on with it

    @property
    def fingerprint(self) -> str:
        """Identity of what is run: changes with anything that could change a result, prompts and task files too.

        A cache is left out: it decides who is asked, while the reply is one of the same model to the same words. So
        are limits, which may change while a run goes on: they say how fast is asked and how often, not what. A loop
        that goes further than it was to keeps the one that it began with, by which its journals know it.
        """
        return self.known_as or digest(identity(self.source) | self.files)

    @property
    def files(self) -> dict[str, str]:
        """Digests of what the recipe names and does not hold."""
        tasks = {"task_files": self.tasks.digest()} if isinstance(self.tasks, FileSource | HubSource) else {}
        return {"prompt_text": self.prompts.digest} | tasks

    def price_of(self, name: str) -> Price | None:
        """Of a model of the recipe: its own, else by ``prices``, else by the shipped list. None: free, or unknown."""
        model = self.models[name]
        price = model.price or (find_price(model.served, self.prices) if model.paid else None)
        return price.in_batches() if price and model.batch else price

    @property
    def providers(self) -> dict[str, str]:
        """Agent -> who answers for it, and is paid where anybody is: a service by its address, else the backend."""
        return {name: self.models[agent.model].provider for name, agent in self.agents.items()}

    @property
    def players(self) -> dict[str, tuple[Player, ...]]:
        """The cast as the protocol takes it."""
        return {
            role: tuple(
                Player(name=name, sampling=self.agents[name].sampling, persona=self.agents[name].persona)
                for name in names
            )
            for role, names in self.cast.items()
        }

    @property
    def speakers(self) -> tuple[str, ...]:
        """The agents that play a role, each once, in the order of the cast."""
        return tuple(dict.fromkeys(name for names in self.cast.values() for name in names))

    @property
    def models_in_use(self) -> tuple[str, ...]:
        """The models that the speakers speak through, each once, in the order of the cast."""
        return tuple(dict.fromkeys(self.agents[name].model for name in self.speakers))

    @property
    def learners(self) -> tuple[str, ...]:
        """The agents that training tunes."""
        roles = tuple(self.train.rules) or find_protocol(self.protocol).LEARNERS
        return self.train.agents or tuple(dict.fromkeys(name for role in roles for name in self.cast.get(role, ())))

    @property
    def hosted(self) -> tuple[str, ...]:
        """The learners that their service trains; the others are trained here."""
        return tuple(name for name in self.learners if self.models[self.agents[name].model].finetune)


FREE = ("run", "description", "prices")
FREE_OF_MODELS = ("price", "cache", "replicas", "max_restarts", "limits")
FREE_OF_LOOP = ("iterations",)  # however many there are to be, the first ones come to the same


def identity(source: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a recipe that could change a result."""
    told = {key: value for key, value in source.items() if key not in FREE}
    return told | {"models": {name: _without(value, *FREE_OF_MODELS) for name, value in source["models"].items()}}


def iterations_of(source: Mapping[str, Any]) -> int:
    """Of a recipe that was checked, by its plain data."""
    number: int = (source.get("loop") or {}).get("iterations", LoopSettings().iterations)
    return number


def digest(value: Any) -> str:
    return hashlib.sha256(msgspec.json.encode(value, order="deterministic")).hexdigest()[:16]


def _without(value: Any, *keys: str) -> Any:
    return {name: item for name, item in value.items() if name not in keys} if isinstance(value, dict) else value
