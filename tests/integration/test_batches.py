"""A run through batches of both services, killed between submitting and collecting: nothing is bought twice."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from actors.limits.policy import POLICIES
from protocols.machine import AgentFailed, Replied
from tests.actors.fake_api import failed, said
from tests.actors.fake_batches import FakeBatches, Outcome, batches_in_a_thread, claude_error, message
from tests.integration.command import Moot, RunOnDisk, command_here, moot_in

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

TASKS = 20
RECIPE = """
name: society
seed: 3
tasks: {{source: arithmetic, level: mixed10, train: {tasks}, test: 0}}
models:
  gpt: {{backend: openai, model: m, base_url: "{url}/v1", batch: {quick}, price: {price}, limits: {soon}}}
  claude: {{backend: anthropic, model: m, base_url: "{url}", batch: {quick}, price: {price}, limits: {soon}}}
agents:
  ada: {{model: gpt}}
  bo: {{model: claude}}
  cy: {{model: gpt}}
protocol: {{name: society, rounds: 2, deadline_s: 20000}}
cast: {{generator: [ada, bo, cy]}}
"""
PARTS = {
    "quick": "{linger_s: 0.3, poll_s: 0.2, max_poll_s: 0.4, max_requests: 25, max_wait_s: 3600}",
    "price": "{input: 10, output: 20, batch_discount: 0.5}",
    "soon": "{backoff_s: 0.05}",
}


class Teller:
    """Answers rows of both services: a tenth fails for good, another comes to nothing the first time."""

    def __init__(self) -> None:
        self.passing: Counter[str] = Counter()  # request -> how often it failed in a way that passes

    def __call__(self, body: dict[str, Any]) -> Outcome:
        chat = isinstance(body["messages"][-1]["content"], str)
        request = json.dumps(body, sort_keys=True)
        lot = sum(request.encode()) % 20
        if lot < 2:
            return 400, failed("no") if chat else claude_error("invalid_request_error")
        if lot < 5 and not self.passing[request]:
            self.passing[request] += 1
            error = failed("oops") if chat else claude_error("overloaded_error")
            outcomes: list[Outcome] = [(500, error), "expired", "missing"]
            return outcomes[lot - 2]
        return 200, said("It is \\boxed{7}.") if chat else message("It is \\boxed{8}.")


@pytest.fixture
def service() -> Iterator[FakeBatches]:
    with batches_in_a_thread(Teller()) as service:
        yield service


@pytest.fixture
def moot(service: FakeBatches, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Moot]:
    folder = tmp_path_factory.mktemp("batches")
    (folder / "society.yaml").write_text(RECIPE.format(url=service.url, tasks=TASKS, **PARTS))
    with moot_in(folder) as moot:
        yield moot


def test_a_run_killed_between_submitting_and_collecting_buys_nothing_twice(
    moot: Moot, service: FakeBatches, local_ray: Any
) -> None:
    run, service.held = RunOnDisk(moot.folder / "r"), True

    def submitted(_: object) -> bool:
        return sum(service.rows.values()) == 3 * TASKS  # all openings

    process = moot.start_until("run", "society.yaml", "--run-dir", "r", "--json", ready=submitted)
    process.kill()
    assert run.outcomes("debate") == []
    assert {batch.input_file_id != "" for batch in service.batches.values()} == {True, False}

    service.held = False
    outcome = command_here("resume", run.path)
    assert outcome["debates"] == outcome["closed"] + outcome["set_aside"] == TASKS
    assert len(run.debates("debate")) == TASKS

    events = run.events("debate")
    replies = [event.reply for event in events if isinstance(event, Replied)]
    failures = [event.failure for event in events if isinstance(event, AgentFailed)]
    assert failures and {failure.kind for failure in failures} == {"malformed"}
    tried = [attempt for reply in replies for attempt in reply.attempts]
    tried += [attempt for failure in failures for attempt in failure.attempts]
    passed = Counter(POLICIES[attempt.kind].tries > 0 for attempt in tried)
    assert passed[True] and passed[False] == len(failures)
    teller = service.answer
    assert isinstance(teller, Teller)
    assert passed[True] == teller.passing.total()
    assert service.rows.total() == len(replies) + len(failures) + passed[True]  # each row as often as it had to be
    assert max(service.rows.values()) == 2
    assert [reply.cost_usd for reply in replies] == pytest.approx([(12 * 5 + 7 * 10) / 1e6] * len(replies))  # half
    assert sorted(path.parent.name for path in run.path.glob("models/*/batches.jsonl")) == ["claude", "gpt"]
