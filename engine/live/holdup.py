"""What holds a run up, as one sentence: the first of the causes below that applies. Pure.

Asks pile up in front of whatever is slowest. So a model with a queue is looked at first, and of several the one with
the longest; where nobody queues, it is the time that replies take, or that too few debates are open.
"""

from __future__ import annotations

from engine.live.snapshot import ModelLoad, Snapshot
from engine.live.units import counted, duration

SLOW_COMMIT_S, BUSY = 0.1, 0.5  # a commit that is felt, in a journal that does little else
SLOW_ENGINE_S, FELT = 0.1, 0.1  # until what a reply enables is sent; and the share of a reply's time that is felt
FULL = 0.9  # share of an engine's cache in use, as in ``actors.limits.engine_room``


def holdup(now: Snapshot) -> str:
    """One sentence without a full stop; "" where nothing is open."""
    if not now.open:
        return "no debate is open yet" if now.left else ""
    if down := [model for model in now.models if not model.up]:
        return f"{down[0].name}: down, being started again"
    if now.journal.commit_s >= SLOW_COMMIT_S and now.journal.busy >= BUSY:
        return f"journal: commits take {duration(now.journal.commit_s)}, {now.journal.busy:.0%} of the time"
    delay_s = now.delay_p50_s or 0.0
    if delay_s >= SLOW_ENGINE_S and delay_s >= FELT * (now.slowest.median_s or 0.0 if now.slowest else 0.0):
        return f"arenas: half of the replies wait more than {duration(delay_s)} until they are acted on"
    queueing = max(now.models, key=lambda model: model.queued, default=None)
    if queueing is not None and queueing.queued:
        return f"{queueing.name}: {_why_queued(queueing)}, {counted(queueing.queued, 'ask')} queued"
    if now.left and now.open >= now.max_open:
        return f"every debate waits for replies and no more may be open (run.max_open), {_slowest(now)}"
    if not now.left:
        return f"no tasks left, {counted(now.open, 'slow debate')}, {_slowest(now)}"
    return f"the models are answering {counted(now.running, 'ask')}, {_slowest(now)}"


def _why_queued(model: ModelLoad) -> str:
    """Of a model that has asks queued: who keeps them back. The gates in the order in which asks pass them."""
    budget, admission = model.gates.get("budget", {}), model.gates.get("admission", {})
    engine = model.gates.get("engine", {})
    if model.limit and model.running >= model.limit:
        return f"all its {model.limit} places are taken{_fullness(model)}"
    if budget.get("waiting"):
        return "waiting for what is left of the budget"
    if paused_s := admission.get("paused_s"):
        return f"its service asks to wait (429), {paused_s:.0f} s more"
    if admission.get("waiting"):
        return _why_not_admitted(admission)
    if engine.get("waiting"):
        return f"engine full ({engine.get('running', 0):.0f} asks in it{_fullness(model)})"
    if model.engine.get("gathered"):
        return f"asks gather for the next batch ({model.engine.get('open_batches', 0):.0f} under way)"
    if model.retries:
        return f"asks wait to be tried again ({model.retries} tries failed lately)"
    return "asks are on their way to it"


def _why_not_admitted(admission: dict[str, float]) -> str:
    running, limit = admission.get("running", 0.0), admission.get("concurrency", 0.0)
    if limit and running + 1 > limit:
        return f"its account takes {int(limit)} asks at once for now"
    rates = {"requests": admission.get("requests_per_minute"), "tokens": admission.get("tokens_per_minute")}
    known = " and ".join(f"{limit:g} {name}" for name, limit in rates.items() if limit)
    return f"waiting for its rate limit ({known or 'none known'} a minute)"


def _fullness(model: ModelLoad) -> str:
    kv_usage = model.engine.get("kv_usage", 0.0)
    return f", KV {kv_usage:.0%}" if kv_usage >= FULL else ""


def _slowest(now: Snapshot) -> str:
    pace = now.slowest
    return f"slowest agent {pace.name} (median {duration(pace.median_s or 0.0)})" if pace else "no reply yet"
