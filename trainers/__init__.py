"""From finished debates to adapters: rules that choose examples, the feed, the trainings, the registry."""

from trainers.jobs.job import TrainedAdapter, TrainingJob, is_trained, read_trained
from trainers.jobs.lanes import LanePlace, fit_lanes, worker_env
from trainers.record.feed import Addition, Feed, FeedActor, FeedPage, Row, decode_page, hash_rows, make_feed_actor
from trainers.record.registry import AdapterRecord, Registry, adapter_name, parse_name, weights_hash
from trainers.selection.example import Example
from trainers.selection.interaction import Interaction
from trainers.selection.mix import Mix
from trainers.selection.preference_row import Preference
from trainers.selection.rule import Rule, RuleOptions
from trainers.selection.select import RULES, Selection, select
from trainers.tuning.full import train_model
from trainers.tuning.magdi import train_on_graphs
from trainers.tuning.magdi_settings import MAGDiResult, MAGDiSettings
from trainers.tuning.sft import load_base, train_adapter
from trainers.tuning.sft_settings import SFTResult, SFTSettings
from trainers.tuning.tree_dpo import train_preferences
from trainers.tuning.tree_dpo_settings import TreeDPOResult, TreeDPOSettings

__all__ = [
    "RULES",
    "AdapterRecord",
    "Addition",
    "Example",
    "Feed",
    "FeedActor",
    "FeedPage",
    "Interaction",
    "LanePlace",
    "MAGDiResult",
    "MAGDiSettings",
    "Mix",
    "Preference",
    "Registry",
    "Row",
    "Rule",
    "RuleOptions",
    "SFTResult",
    "SFTSettings",
    "Selection",
    "TrainedAdapter",
    "TrainingJob",
    "TreeDPOResult",
    "TreeDPOSettings",
    "adapter_name",
    "decode_page",
    "fit_lanes",
    "hash_rows",
    "is_trained",
    "load_base",
    "make_feed_actor",
    "parse_name",
    "read_trained",
    "select",
    "train_adapter",
    "train_model",
    "train_on_graphs",
    "train_preferences",
    "weights_hash",
    "worker_env",
]
