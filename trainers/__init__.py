"""From finished debates to adapters: rules that choose examples, the feed, the trainings, the registry."""

from trainers.example import Example
from trainers.feed import Addition, Feed, FeedActor, FeedPage, Row, decode_page, hash_rows, make_feed_actor
from trainers.full import train_model
from trainers.interaction import Interaction
from trainers.job import TrainedAdapter, TrainingJob, is_trained, read_trained
from trainers.lanes import LanePlace, fit_lanes, worker_env
from trainers.magdi import train_on_graphs
from trainers.magdi_settings import MAGDiResult, MAGDiSettings
from trainers.mix import Mix
from trainers.preference_row import Preference
from trainers.registry import AdapterRecord, Registry, adapter_name, parse_name, weights_hash
from trainers.rule import Rule, RuleOptions
from trainers.select import RULES, Selection, select
from trainers.sft import load_base, train_adapter
from trainers.sft_settings import SFTResult, SFTSettings
from trainers.tree_dpo import train_preferences
from trainers.tree_dpo_settings import TreeDPOResult, TreeDPOSettings

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
