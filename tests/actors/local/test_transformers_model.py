"""A model of transformers behind the one interface: what it draws, for whom, in whose company, and what it refuses."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from actors.local.embedded import embedded_model_path
from actors.local.transformers_batch import Batch, Row, nucleus, pick
from actors.local.transformers_model import TransformersBackend, TransformersSettings
from actors.local.transformers_settings import required_env
from actors.models.backend import AdapterRef
from engine.check import check_recipe
from protocols.errors import AgentError, ReplyError
from protocols.message import Ask, ImagePart, Reply, Sampling, user
from tests.trainers.conftest import tiny_model

__all__ = ["tiny_model"]


def ask(number: int = 0, text: str = "", **sampling: Any) -> Ask:
    drawn = Sampling(**({"max_tokens": 8, "temperature": 0.0} | sampling))
    words = text or f"What is {number} + {'1' * (number + 1)}?"  # of another length each
    return Ask(
        id=f"d{number}#0", debate_id=f"d{number}", agent="ada", role="solver", messages=(user(words),), sampling=drawn
    )


def using(settings: TransformersSettings, work: Callable[[TransformersBackend], Awaitable[Any]]) -> Any:
    async def run() -> Any:
        backend = TransformersBackend(settings)
        await backend.start()
        try:
            return await asyncio.wait_for(work(backend), 60)
        finally:
            await backend.close()

    return asyncio.run(run())


def replies(settings: TransformersSettings, *asks: Ask, at_once: bool = True) -> list[Reply]:
    async def work(backend: TransformersBackend) -> list[Reply]:
        if at_once:
            return list(await asyncio.gather(*(backend.generate(each, None) for each in asks)))
        return [await backend.generate(each, None) for each in asks]

    found: list[Reply] = using(settings, work)
    return found


@pytest.fixture
def settings(tiny_model: Path) -> TransformersSettings:
    return TransformersSettings(model=str(tiny_model), max_batch=4, max_wait_ms=50, max_adapters=2)


@pytest.fixture(scope="module")
def tuned(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[AdapterRef]:
    """Two random adapters, large enough to be heard."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    made = []
    for seed, name in enumerate(("ada@r.1-v1", "bo@r.1-v1")):
        base: Any = AutoModelForCausalLM.from_pretrained(tiny_model)
        torch.manual_seed(seed)
        config = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
        folder = tmp_path_factory.mktemp("adapters") / name
        model = get_peft_model(base, config)
        for key, weights in model.named_parameters():
            if "lora_" in key:
                weights.data.mul_(3.0)
        model.save_pretrained(str(folder))
        made.append(AdapterRef(name=name, agent=name.partition("@")[0], path=str(folder)))
    return made


# What is drawn


def pick_one(logits: Any, sampling: Sampling, draw: Callable[[], float]) -> tuple[int, float]:
    (found,) = pick(logits[None], [sampling], [draw])
    assert found is not None
    return found


def test_a_pick_inverts_the_distribution_along_the_vocabulary() -> None:
    logits = torch.tensor([0.5, 0.25, 0.125, 0.125]).log()
    uniforms = (0.0, 0.49, 0.51, 0.74, 0.76, 0.874, 0.876, 1 - 1e-12)
    assert [pick_one(logits, Sampling(), _always(u))[0] for u in uniforms] == [0, 0, 1, 1, 2, 2, 3, 3]
    assert pick_one(logits, Sampling(), lambda: 0.6)[1] == pytest.approx(math.log(0.25))


def test_temperature_and_top_p_change_the_draw_but_not_the_logprob() -> None:
    logits = torch.tensor([0.25, 0.5, 0.25]).log()
    assert pick_one(logits, Sampling(temperature=0.0), _never) == pytest.approx((1, math.log(0.5)))
    # at temperature 1/2 the chances are 1/6, 4/6, 1/6
    sharp = Sampling(temperature=0.5)
    assert [pick_one(logits, sharp, _always(u))[0] for u in (0.16, 0.17, 0.83, 0.84)] == [0, 1, 1, 2]
    assert pick_one(logits, Sampling(top_p=0.5), lambda: 0.999) == pytest.approx((1, math.log(0.5)))
    assert pick_one(logits, Sampling(temperature=1e-320), lambda: 0.999)[0] == 1


def _always(number: float) -> Callable[[], float]:
    return lambda: number


def _never() -> float:
    raise AssertionError("a greedy pick draws nothing")


@given(st.lists(st.tuples(st.floats(0, 2), st.floats(0.01, 1), st.floats(0, 0.999)), min_size=1, max_size=80))
def test_rows_are_picked_together_as_by_themselves(figures: list[tuple[float, float, float]]) -> None:
    torch.manual_seed(len(figures))
    logits = 3 * torch.randn(len(figures), 40)
    logits[::7, 3] = math.nan
    samplings = [Sampling(temperature=temperature, top_p=top_p) for temperature, top_p, _ in figures]
    draws = [_always(uniform) for *_, uniform in figures]
    together = pick(logits, samplings, draws)
    for number, found in enumerate(together):
        (alone,) = pick(logits[number : number + 1], samplings[number : number + 1], draws[number : number + 1])
        assert (found is None) == (alone is None) == (number % 7 == 0)
        assert found is None or found == pytest.approx(alone, abs=1e-12)


def test_logits_that_are_no_numbers_end_their_row_alone() -> None:
    rows = [Row([1], Sampling(max_tokens=2)), Row([1], Sampling(max_tokens=2))]
    broken = Says([3, 3])
    broken.broken = 1
    batch = Batch(broken, rows, str, frozenset())
    assert batch.step() == [rows[1]] and batch.step() == [rows[0]]
    assert rows[0].error is None and rows[0].finish_reason == "length"
    assert rows[1].error is not None and "not numbers" in str(rows[1].error) and rows[1].error.kind == "malformed"


@given(st.lists(st.floats(0.001, 1.0), min_size=1, max_size=600), st.floats(0.01, 1.0))
def test_the_nucleus_is_the_smallest_set_of_the_most_probable_that_reaches_top_p(
    raw: list[float], top_p: float
) -> None:
    probs = torch.tensor(raw, dtype=torch.float64)
    probs = probs / probs.sum()
    found = nucleus(probs[None], torch.tensor([[top_p]], dtype=torch.float64))[0]
    inside, outside = found[found > 0], probs[found == 0]
    assert torch.equal(inside, probs[found > 0])
    assert float(inside.sum()) >= top_p - 1e-9
    assert float(inside.sum() - inside.min()) < top_p or top_p >= 1.0
    assert not len(outside) or float(outside.max()) <= float(inside.min())


class Says:
    """A model that says the given tokens in order, whatever it is told; ``asked`` keeps the size of each pass."""

    device = torch.device("cpu")

    def __init__(self, tokens: list[int], words: int = 10) -> None:
        self._tokens, self._words, self._number = tokens, words, 0
        self.broken: int | None = None  # a row whose logits are no numbers
        self.sizes: list[int] = []
        self.positions: list[list[list[int]]] = []

    def __call__(self, *, input_ids: Any, position_ids: Any, **_: Any) -> Any:
        self.sizes.append(len(input_ids))
        self.positions.append(position_ids.tolist())
        logits = torch.zeros(len(input_ids), 1, self._words)
        logits[:, :, self._tokens[self._number]] = 9.0
        if self.broken is not None:
            logits[self.broken :] = math.nan
        self._number += 1
        return type("Output", (), {"logits": logits, "past_key_values": self})

    def batch_select_indices(self, index: Any) -> None:
        pass


def letters(ids: list[int]) -> str:
    return "".join("abcdefgh.!"[token] for token in ids)


def _row(prompt: int = 2, **sampling: Any) -> Row:
    return Row(list(range(prompt)), Sampling(**({"temperature": 0.0, "max_tokens": 6} | sampling)))


def run_batch(model: Says, *rows: Row) -> None:
    batch = Batch(model, rows, letters, frozenset({9}))
    while batch.rows:
        batch.step()


def test_rows_end_by_the_turn_s_end_by_a_stop_string_or_by_their_limit() -> None:
    ending, stopping, short = _row(), _row(stop=("zz", "cd")), _row(max_tokens=2)
    model = Says([0, 1, 2, 3, 4, 9])
    run_batch(model, ending, stopping, short)
    assert (ending.text, ending.token_ids, ending.finish_reason) == ("abcde!", [0, 1, 2, 3, 4, 9], "stop")
    assert (stopping.text, stopping.token_ids, stopping.finish_reason) == ("ab", [0, 1, 2, 3], "stop")
    assert (short.text, short.finish_reason) == ("ab", "length")
    assert model.sizes == [3, 3, 2, 2, 1, 1]
    assert [len(row.logprobs) for row in (ending, stopping, short)] == [6, 4, 2]


def test_a_short_prompt_is_padded_on_the_left_and_counts_from_its_own_beginning() -> None:
    model = Says([0, 9])
    run_batch(model, _row(prompt=3), _row(prompt=1))
    assert model.positions == [[[0, 1, 2], [0, 0, 0]], [[3], [1]]]


def test_a_row_that_is_dropped_leaves_the_batch() -> None:
    model, staying, going = Says([0, 1, 9]), _row(), _row()
    batch = Batch(model, [staying, going], letters, frozenset({9}))
    batch.step()
    going.dropped = True
    while batch.rows:
        batch.step()
    assert model.sizes == [2, 1, 1]
    assert (staying.text, going.text) == ("ab!", "")


# Behind the interface


@pytest.mark.slow
def test_greedy_is_what_generate_says_and_logprobs_are_those_of_a_plain_forward(
    settings: TransformersSettings, tiny_model: Path
) -> None:
    asks = [ask(number, max_tokens=20) for number in range(6)]
    for each, reply in zip(asks, replies(settings, *asks), strict=True):
        prompt_ids, model = _plain(tiny_model, each)
        generated = model.generate(torch.tensor([prompt_ids]), max_new_tokens=20, do_sample=False)
        assert list(reply.token_ids) == generated[0, len(prompt_ids) :].tolist()
        assert reply.logprobs == pytest.approx(_score(model, prompt_ids, reply.token_ids), abs=1e-4)
        assert reply.usage.prompt_tokens == len(prompt_ids)


def _plain(folder: Path, asked: Ask) -> tuple[list[int], Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    chat = [{"role": message.role, "content": message.text} for message in asked.messages]
    ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
    return list(ids), AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def _score(model: Any, prompt_ids: list[int], token_ids: tuple[int, ...]) -> list[float]:
    """[T] nats, from one forward pass without a cache."""
    with torch.inference_mode():
        logits = model(torch.tensor([[*prompt_ids, *token_ids]])).logits[0, len(prompt_ids) - 1 : -1]
    return [float(row[token]) for row, token in zip(logits.double().log_softmax(-1), token_ids, strict=True)]


@pytest.mark.slow
def test_a_draw_depends_on_its_own_seed_and_not_on_its_company(settings: TransformersSettings) -> None:
    asks = [ask(number, temperature=1.0, top_p=0.9, seed=number, max_tokens=12) for number in range(8)]
    alone = replies(settings, *asks, at_once=False)
    together = replies(settings, *asks)
    assert [reply.token_ids for reply in alone] == [reply.token_ids for reply in together]
    for one, other in zip(alone, together, strict=True):
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4)
    other = replies(settings, ask(0, temperature=1.0, top_p=0.9, seed=77, max_tokens=12))[0]
    assert other.token_ids != alone[0].token_ids


@pytest.mark.slow
def test_without_a_seed_every_draw_is_another(settings: TransformersSettings) -> None:
    same = [ask(1, temperature=1.0, max_tokens=12) for _ in range(3)]
    assert len({reply.token_ids for reply in replies(settings, *same)}) == 3


@pytest.mark.slow
def test_those_who_wait_share_passes(settings: TransformersSettings) -> None:
    async def work(backend: TransformersBackend) -> dict[str, float]:
        await asyncio.gather(*(backend.generate(ask(number), None) for number in range(8)))
        return backend.metrics()

    figures = using(settings, work)
    assert (figures["batches"], figures["requests"], figures["replies"]) == (2, 8, 8)
    assert figures["rows"] == figures["tokens_generated"]
    assert figures["passes"] <= 16


@pytest.mark.slow
def test_each_adapter_speaks_for_itself_though_they_are_asked_at_once(
    settings: TransformersSettings, tuned: list[AdapterRef]
) -> None:
    async def work(backend: TransformersBackend) -> list[Reply]:
        before = await backend.generate(ask(), None)
        for adapter in tuned:
            await backend.load_adapter(adapter)
            await backend.load_adapter(adapter)  # once more does no harm
        mixed = [adapter for adapter in (None, *tuned) for _ in range(2)]
        said = await asyncio.gather(*(backend.generate(ask(), adapter) for adapter in mixed))
        await backend.unload_adapter(tuned[0])
        await backend.unload_adapter(tuned[0])
        assert backend.metrics()["adapters"] == 1
        return [before, *said, await backend.generate(ask(), None), await backend.generate(ask(), tuned[1])]

    said = using(settings, work)
    base, ada, bo = said[0], said[3], said[5]
    assert [reply.adapter for reply in said[1:7]] == ["", "", *[tuned[0].name] * 2, *[tuned[1].name] * 2]
    assert len({reply.token_ids for reply in (base, ada, bo)}) == 3
    for number, expected in ((1, base), (2, base), (4, ada), (6, bo), (7, base), (8, bo)):
        assert said[number].logprobs == pytest.approx(expected.logprobs, abs=1e-5)


@pytest.mark.slow
def test_an_adapter_s_logprobs_are_those_of_peft_itself(
    settings: TransformersSettings, tuned: list[AdapterRef], tiny_model: Path
) -> None:
    from peft import PeftModel

    asked = ask(3)
    reply = using(settings, lambda backend: backend.generate(asked, tuned[1]))  # a restarted actor has loaded none
    prompt_ids, base = _plain(tiny_model, asked)
    model = PeftModel.from_pretrained(base, tuned[1].path).eval()
    assert reply.logprobs == pytest.approx(_score(model, prompt_ids, reply.token_ids), abs=1e-4)


@pytest.mark.slow
def test_adapters_beyond_the_limit_or_for_another_model_are_refused(
    settings: TransformersSettings, tuned: list[AdapterRef], tmp_path: Path
) -> None:
    async def load(backend: TransformersBackend) -> None:
        await backend.load_adapter(tuned[0])

    with pytest.raises(AgentError, match=r"max_adapters=0 and 0 loaded; set max_adapters >= 1"):
        using(msgspec.structs.replace(settings, max_adapters=0), load)

    async def elsewhere(backend: TransformersBackend) -> None:
        await load(backend)
        await backend.load_adapter(msgspec.structs.replace(tuned[0], path=str(tmp_path)))

    with pytest.raises(AgentError, match="give new weights a new version name"):
        using(settings, elsewhere)

    async def missing(backend: TransformersBackend) -> None:
        await backend.generate(ask(), AdapterRef(name="cy@r-v1", agent="cy", path=str(tmp_path / "none")))

    with pytest.raises(ReplyError, match="no readable adapter_config") as caught:
        using(settings, missing)
    assert caught.value.kind == "malformed"


@pytest.mark.slow
def test_a_prompt_without_room_an_image_and_a_schema_are_refused_while_others_speak(
    settings: TransformersSettings,
) -> None:
    pictured = msgspec.structs.replace(ask(), messages=(user("What is it?", [ImagePart(sha256="0" * 64)]),))

    held = msgspec.structs.replace(ask(), schema='{"type":"object"}')

    async def work(backend: TransformersBackend) -> list[object]:
        wanted = [ask(1, max_tokens=8), ask(2, max_tokens=600), pictured, held]
        return list(await asyncio.gather(*(backend.generate(each, None) for each in wanted), return_exceptions=True))

    good, long, image, form = using(settings, work)
    assert isinstance(good, Reply)
    assert isinstance(long, ReplyError) and long.kind == "context_too_long"
    assert "max_tokens=600" in str(long) and "holds 512 in all" in str(long)
    assert isinstance(image, ReplyError) and image.kind == "malformed" and "carries an image" in str(image)
    assert isinstance(form, ReplyError) and form.kind == "malformed" and "has a schema" in str(form)


@pytest.mark.slow
def test_whoever_is_cancelled_leaves_and_the_others_stay(settings: TransformersSettings) -> None:
    async def work(backend: TransformersBackend) -> tuple[list[Reply], dict[str, float]]:
        going = [asyncio.create_task(backend.generate(ask(number, max_tokens=400), None)) for number in range(3)]
        staying = asyncio.create_task(backend.generate(ask(9, max_tokens=4), None))
        while not backend.metrics()["passes"]:
            await asyncio.sleep(0.001)
        for task in going:
            task.cancel()
        assert await asyncio.gather(*going, return_exceptions=True)
        after = await backend.generate(ask(10, max_tokens=4), None)
        return [await staying, after], backend.metrics()

    (one, other), figures = using(settings, work)
    assert len(one.token_ids) == len(other.token_ids) == 4
    assert figures["rows"] < 400


@pytest.mark.slow
def test_the_one_who_waited_longest_is_next_however_many_come_after(
    settings: TransformersSettings, tuned: list[AdapterRef]
) -> None:
    """One ask for an adapter among a crowd for the base: it is in the second batch, not the last."""

    async def work(backend: TransformersBackend) -> list[str]:
        order: list[str] = []

        async def one(name: str, adapter: AdapterRef | None) -> None:
            await backend.generate(ask(0, max_tokens=4), adapter)
            order.append(name)

        names = ["base"] * 4 + ["ada"] + ["base"] * 8
        await asyncio.gather(*(one(name, tuned[0] if name == "ada" else None) for name in names))
        return order

    assert using(settings, work).index("ada") == 4


@pytest.mark.slow
def test_closing_tells_those_who_wait(settings: TransformersSettings) -> None:
    async def run() -> list[object]:
        backend = TransformersBackend(settings)
        with pytest.raises(ReplyError, match="not started"):
            await backend.generate(ask(), None)
        await backend.start()
        asked = [asyncio.create_task(backend.generate(ask(n, max_tokens=400), None)) for n in range(9)]
        await asyncio.sleep(0)
        await backend.close()
        await backend.close()
        with pytest.raises(ReplyError, match="closed already"):
            await backend.generate(ask(), None)
        return list(await asyncio.gather(*asked, return_exceptions=True))

    for outcome in asyncio.run(run()):
        assert isinstance(outcome, ReplyError) and "was closed" in str(outcome)


def test_the_process_starts_with_threads_that_sleep_while_they_wait() -> None:
    assert required_env(TransformersSettings())["OMP_WAIT_POLICY"] == "PASSIVE"


@pytest.mark.slow
def test_a_model_that_cannot_be_loaded_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(AgentError, match="transformers could not load model="):
        using(TransformersSettings(model=str(tmp_path)), lambda backend: backend.generate(ask(), None))


@pytest.mark.parametrize(
    "setting", ["max_batch = 0", "max_wait_ms = -1", "max_adapters = -1", "threads = 0", "dtpe = 1"]
)
def test_a_wrong_setting_is_named(setting: str) -> None:
    with pytest.raises(msgspec.ValidationError, match=setting.partition(" ")[0]):
        msgspec.toml.decode(setting, type=TransformersSettings)


def test_the_example_is_a_recipe_that_could_run() -> None:
    found = check_recipe(Path(__file__).resolve().parents[3] / "examples" / "transformers.yaml", [], None)
    assert (found["agents"], found["train"]) == (2, 8)


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_the_embedded_model_says_what_it_says_elsewhere() -> None:
    """float32: two correct computations differ by the order of their sums alone."""
    settings = TransformersSettings(max_batch=4, max_wait_ms=200)
    greedy = [ask(number, max_tokens=16) for number in range(3)]
    drawn = [ask(number, max_tokens=16, temperature=1.0, top_p=0.9, seed=number) for number in range(3, 6)]
    together = replies(settings, *greedy, *drawn)
    alone = replies(settings, *drawn, at_once=False)
    assert [reply.model for reply in together] == ["SmolLM2-135M-Instruct"] * 6
    for each, reply in zip([*greedy, *drawn], together, strict=True):
        prompt_ids, model = _plain(embedded_model_path(), each)
        assert reply.logprobs == pytest.approx(_score(model, prompt_ids, reply.token_ids), abs=1e-4)
        if each.sampling.temperature == 0:
            said = model.generate(torch.tensor([prompt_ids]), max_new_tokens=16, do_sample=False)
            assert list(reply.token_ids) == said[0, len(prompt_ids) :].tolist()
    assert [reply.token_ids for reply in together[3:]] == [reply.token_ids for reply in alone]
