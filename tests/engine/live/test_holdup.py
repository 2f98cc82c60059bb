"""What holds a run up: one sentence for each cause, and which cause is told where several apply."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from engine.live.holdup import holdup
from engine.live.snapshot import AgentPace, JournalPace, ModelLoad, Reading, Snapshot
from engine.live.summary import snapshot

NOTHING = Reading(at_s=0.0, total=100, max_open=50)
BO = AgentPace(name="bo", model="gpt", median_s=14.2)
RATES = {"waiting": 9.0, "running": 2.0, "concurrency": 64.0}


def run(**told: Any) -> Snapshot:
    """Twenty debates open, tasks left, a model that answers and queues nothing."""
    quiet = snapshot(NOTHING, NOTHING, NOTHING)
    usual = {"open": 20, "left": 40, "running": 60, "slowest": BO, "models": (model(),)}
    return msgspec.structs.replace(quiet, **(usual | told))


def model(**told: Any) -> ModelLoad:
    return msgspec.structs.replace(ModelLoad(name="gpt", up=1, replicas=1, limit=500, running=60), **told)


def queued(**told: Any) -> Snapshot:
    return run(models=(model(queued=312, **told),))


@pytest.mark.parametrize(
    ("now", "sentence"),
    [
        (run(open=0, left=0), ""),
        (run(open=0), "no debate is open yet"),
        (run(models=(model(up=0),)), "gpt: down, being started again"),
        (
            run(journal=JournalPace(commit_s=0.18, busy=0.9)),
            "journal: commits take 180 ms, 90% of the time",
        ),
        (
            run(delay_p50_s=0.34, slowest=msgspec.structs.replace(BO, median_s=2.0)),
            "arenas: half of the replies wait more than 340 ms until they are acted on",
        ),
        (run(delay_p50_s=0.34), "the models are answering 60 asks, slowest agent bo (median 14 s)"),
        (queued(running=500), "gpt: all its 500 places are taken, 312 asks queued"),
        (
            queued(running=500, engine={"kv_usage": 0.98}),
            "gpt: all its 500 places are taken, KV 98%, 312 asks queued",
        ),
        (
            queued(gates={"budget": {"waiting": 4.0}}),
            "gpt: waiting for what is left of the budget, 312 asks queued",
        ),
        (
            queued(gates={"admission": RATES | {"paused_s": 12.3}}),
            "gpt: its service asks to wait (429), 12 s more, 312 asks queued",
        ),
        (
            queued(gates={"admission": RATES | {"requests_per_minute": 60.0, "tokens_per_minute": 90000.0}}),
            "gpt: waiting for its rate limit (60 requests and 90000 tokens a minute), 312 asks queued",
        ),
        (
            queued(gates={"admission": RATES | {"running": 11.0, "concurrency": 11.5}}),
            "gpt: its account takes 11 asks at once for now, 312 asks queued",
        ),
        (
            queued(gates={"engine": {"waiting": 312.0, "running": 40.0}}, engine={"kv_usage": 0.98}),
            "gpt: engine full (40 asks in it, KV 98%), 312 asks queued",
        ),
        (
            queued(gates={"engine": {"waiting": 312.0, "running": 64.0}}, engine={"kv_usage": 0.3}),
            "gpt: engine full (64 asks in it), 312 asks queued",
        ),
        (
            queued(engine={"gathered": 312.0, "open_batches": 2.0}),
            "gpt: asks gather for the next batch (2 under way), 312 asks queued",
        ),
        (queued(retries=57), "gpt: asks wait to be tried again (57 tries failed lately), 312 asks queued"),
        (run(models=(model(queued=1),)), "gpt: asks are on their way to it, 1 ask queued"),
        (
            run(open=50),
            "every debate waits for replies and no more may be open (run.max_open), slowest agent bo (median 14 s)",
        ),
        (run(left=0, open=3), "no tasks left, 3 slow debates, slowest agent bo (median 14 s)"),
        (run(left=0, open=1, slowest=None), "no tasks left, 1 slow debate, no reply yet"),
        (run(), "the models are answering 60 asks, slowest agent bo (median 14 s)"),
        (
            run(running=1, slowest=msgspec.structs.replace(BO, median_s=1.26)),
            "the models are answering 1 ask, slowest agent bo (median 1.3 s)",
        ),
    ],
)
def test_each_cause_has_its_sentence(now: Snapshot, sentence: str) -> None:
    assert holdup(now) == sentence


def test_the_longest_queue_is_told() -> None:
    models = (model(name="a", queued=4, retries=1), model(name="b", queued=9, retries=1), model(name="c"))
    assert holdup(run(models=models)).startswith("b: ")


def test_what_is_slow_for_everybody_comes_before_a_queue() -> None:
    models, journal = (model(queued=312),), JournalPace(commit_s=0.3, busy=0.8)
    assert holdup(run(models=models, journal=journal)).startswith("journal: ")
    assert holdup(run(models=models, journal=JournalPace(commit_s=0.3, busy=0.1))).startswith("gpt: "), (
        "a journal that is slow but seldom used holds nobody up"
    )
    assert holdup(run(models=(model(up=0), model(name="b", queued=9)), journal=journal)).startswith("gpt: down")
