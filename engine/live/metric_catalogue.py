"""Every metric of moot as data: the table in ``docs/observability.md`` is made from it, the dashboard checked with it.

Ray puts ``ray_`` before each name and ``_total`` behind a counter's; ``Metric.exported`` is the name Prometheus sees.
"""

from __future__ import annotations

from typing import Literal

import msgspec

RUN = ("run",)
HOST = ("run", "model", "host")
AGENT = ("run", "model", "host", "agent")
ARENA = ("run", "arena")
LEARNER = ("run", "agent")


class Metric(msgspec.Struct, frozen=True):
    """A ``histogram`` is two series, ``_bucket`` (by ``le``, one an octave) and ``_count``, as Prometheus has them."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    unit: str
    labels: tuple[str, ...]
    meaning: str

    @property
    def series(self) -> dict[str, tuple[str, ...]]:
        """What is told to Ray -> its labels."""
        if self.kind != "histogram":
            return {self.name: self.labels}
        return {f"{self.name}_bucket": (*self.labels, "le"), f"{self.name}_count": self.labels}

    @property
    def exported(self) -> tuple[str, ...]:
        return tuple(f"ray_{name}" + "_total" * (self.kind == "counter") for name in self.series)


METRICS = (
    Metric("moot_debates", "gauge", "debates", RUN, "the stage's tasks, those on record already included"),
    Metric("moot_debates_open", "gauge", "debates", RUN, "taken on by an arena and not over"),
    Metric("moot_debates_left", "gauge", "debates", RUN, "not handed to an arena yet"),
    Metric("moot_debates_closed", "gauge", "debates", RUN, "over, in this stage, set aside or not"),
    Metric("moot_debates_set_aside", "gauge", "debates", RUN, "over, in this stage, without a verdict"),
    Metric("moot_asks_queued", "gauge", "asks", AGENT, "at a host and not in the model: before a limit, or a next try"),
    Metric("moot_asks_running", "gauge", "asks", AGENT, "in the model"),
    Metric("moot_replies", "counter", "replies", AGENT, "answered, from the reply cache too"),
    Metric("moot_failures", "counter", "asks", (*HOST, "kind"), "given up, after every try"),
    Metric("moot_retries", "counter", "tries", HOST, "further tries of asks that had failed"),
    Metric("moot_hedges", "counter", "tries", HOST, "second tries beside a slow first"),
    Metric("moot_prompt_tokens", "counter", "tokens", AGENT, "read by models, as they count"),
    Metric("moot_completion_tokens", "counter", "tokens", AGENT, "said by models"),
    Metric("moot_cached_tokens", "counter", "tokens", AGENT, "of the prompts', from a prefix cache"),
    Metric("moot_cost_usd", "counter", "US dollars", AGENT, "of replies, and of failed tries that may be billed"),
    Metric("moot_reply_seconds", "histogram", "seconds", AGENT, "from sending a try to its reply"),
    Metric("moot_hosts_up", "gauge", "hosts", ("run", "model"), "a model's processes that answer"),
    Metric("moot_host_restarts", "gauge", "times", HOST, "a model's process was started again"),
    Metric("moot_concurrency", "gauge", "asks", HOST, "that a host puts into its model at once, at most"),
    Metric("moot_gate_waiting", "gauge", "asks", (*HOST, "gate"), "before a limit: admission, budget or engine"),
    Metric("moot_gate_limit", "gauge", "asks", (*HOST, "gate"), "that the limit lets through at once now"),
    Metric("moot_gate_paused_seconds", "gauge", "seconds", (*HOST, "gate"), "until the service may be asked again"),
    Metric("moot_budget_spent_usd", "gauge", "US dollars", RUN, "of run.budget, by the whole run"),
    Metric("moot_reply_cache_hits", "counter", "asks", HOST, "answered from the reply cache"),
    Metric("moot_kv_usage", "gauge", "share", HOST, "of a local engine's cache in use, from 0 to 1"),
    Metric("moot_prefix_queries", "counter", "tokens", HOST, "of prompts, looked up in an engine's prefix cache"),
    Metric("moot_prefix_hits", "counter", "tokens", HOST, "of prompts, found there"),
    Metric("moot_arena_debates_open", "gauge", "debates", ARENA, "that an arena holds"),
    Metric(
        "moot_dispatch_seconds", "histogram", "seconds", ARENA, "from a reply's arrival until what it enables leaves"
    ),
    Metric("moot_late_replies", "counter", "replies", ARENA, "that came when nobody waited any more"),
    Metric("moot_journal_commits", "counter", "commits", ARENA, "to an arena's journal"),
    Metric("moot_journal_commit_seconds", "counter", "seconds", ARENA, "spent in them"),
    Metric("moot_journal_entries", "counter", "entries", ARENA, "written by them"),
    Metric("moot_journal_bytes", "gauge", "bytes", ARENA, "on disk"),
    Metric("moot_training_steps", "gauge", "steps", LEARNER, "of an agent's training, at its last checkpoint"),
    Metric("moot_training_rows", "gauge", "rows", LEARNER, "that it had seen by then"),
    Metric("moot_training_loss", "gauge", "nats a token", LEARNER, "of that step"),
)


def table() -> str:
    """The catalogue as a table in Markdown."""
    rows = [
        f"| `{item.name}` | {item.kind} | {item.unit} | {', '.join(item.labels)} | {item.meaning} |" for item in METRICS
    ]
    return "\n".join(["| name | kind | unit | labels | meaning |", "|---|---|---|---|---|", *rows])


if __name__ == "__main__":
    import sys

    sys.stdout.write(table() + "\n")
