"""MAGDi's loss and gradients against a plain reference, its graph network against numbers worked by hand."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from protocols.errors import TrainerError
from protocols.message import user
from tests.trainers.conftest import device, loaded
from trainers.selection.interaction import Interaction
from trainers.tuning.magdi import train_on_graphs
from trainers.tuning.magdi_settings import MAGDiSettings
from trainers.tuning.pack_steps import SavedPlace
from trainers.tuning.stream import START
from trainers.tuning.token_graph import GraphTokeniser, TokenGraph


def training(test: Any) -> Any:
    """Marks a test that loads a model: slow, and the libraries warn of what they deprecate in themselves."""
    return pytest.mark.slow(pytest.mark.filterwarnings("default")(test))


def debate(number: int, replies: str, right: str, **changes: Any) -> Interaction:
    """Replies that are separated by "/"; of two seats in two rounds or, with other edges, of as many as there are."""
    said = tuple(replies.split("/"))
    fields: dict[str, Any] = {
        "id": f"d{number}:magdi",
        "agent": "ada",
        "debate_id": f"d{number}",
        "prompt": (user(f"What is {number} + {number}?"),),
        "node_ids": tuple(f"{at % 2}.answer.{at // 2}" for at in range(len(said))),
        "replies": said,
        "finish_reasons": ("stop",) * len(said),
        "right": tuple(mark == "r" for mark in right),
        "edges": ((0, 1), (2, 3), (0, 3), (2, 1)),
        "pairs": (),
    }
    return Interaction(**(fields | changes))


DEBATES = [
    debate(1, "It is 2./2/It is three./It is 2, I see.", "rrwr", pairs=((0, 2), (1, 2), (3, 2))),
    debate(2, "5/Four/22/I stay with 22.", "wrww", pairs=((1, 0), (1, 2), (1, 3))),
    debate(3, "6/6./Six", "rrr", edges=((0, 1), (2, 1)), pairs=((0, None), (1, None), (2, None))),  # one failed
]
SETTINGS = MAGDiSettings(
    rank=4,
    dropout=0.0,
    hidden=8,
    learning_rate=1e-2,
    schedule="constant",
    warmup=0.0,
    gradient_accumulation=2,
    epochs=1,
)


# --- settings


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("hidden", 0),
        ("node_weight", -1.0),
        ("margin_weight", math.inf),
        ("dropout", 1.0),
        ("node_features", "teacher"),
        ("edges", "all"),
        ("target_modules", "q_proj"),
        ("margin", 2.0),
    ],
)
def test_settings_out_of_range_are_refused_by_name(setting: str, value: object) -> None:
    with pytest.raises(msgspec.ValidationError, match=setting):
        msgspec.convert({setting: value}, MAGDiSettings)


def test_a_loss_without_terms_is_refused() -> None:
    with pytest.raises(msgspec.ValidationError, match="are all 0; nothing would be learned"):
        msgspec.convert(dict.fromkeys(("language_weight", "node_weight", "margin_weight"), 0), MAGDiSettings)


# --- the graph network


@training
def test_a_layer_of_the_network_by_hand() -> None:
    """torch_geometric's formula on 0 -> 1, 0 -> 2, 1 -> 2: with loops, 1, 2 and 3 edges lead into the three nodes.

    Node 0 takes itself: 1. Node 1 takes 0 by 1 / sqrt(1 * 2) and itself by 1/2. Node 2 takes 0 by 1 / sqrt(1 * 3), 1 by
    1 / sqrt(2 * 3) and itself by 1/3.
    """
    import torch

    from trainers.tuning.graph_network import GraphLayer, gathering

    gathers = gathering([(0, 1), (0, 2), (1, 2)], 3)
    by_hand = torch.tensor([[1, 0, 0], [0.70710678, 0.5, 0], [0.57735027, 0.40824829, 0.33333333]])
    assert torch.allclose(gathers, by_hand, atol=1e-7)
    layer = GraphLayer(2, 2)
    bound = math.sqrt(6 / 4)
    assert layer.weight.abs().max() <= bound and layer.bias.abs().max() == 0
    layer.weight.data, layer.bias.data = torch.tensor([[1.0, 2.0], [0.0, -1.0]]), torch.tensor([0.5, 0.0])
    # Times the weights: (1, 1) -> (1, 1); (2, 0) -> (2, 4); (0, 3) -> (0, -3). Then gathered, then the bias.
    nodes = torch.tensor([[1.0, 1.0], [2.0, 0.0], [0.0, 3.0]])
    wanted = torch.tensor(
        [
            [1.5, 1.0],
            [0.70710678 + 1.0 + 0.5, 0.70710678 + 2.0],
            [0.57735027 + 0.81649658 + 0.5, 0.57735027 + 0.63299316],
        ]
    )
    assert torch.allclose(layer(nodes, gathers), wanted, atol=1e-6)
    # An edge that is drawn twice, or a loop that is drawn, changes nothing.
    assert torch.equal(gathering([(0, 1), (0, 2), (1, 2), (0, 1), (2, 2)], 3), gathers)


@training
def test_later_tokens_weigh_more_and_padding_nothing() -> None:
    """In the released code padding stands in front and is counted: a batch's longest answer moves the others."""
    import torch

    from trainers.tuning.graph_network import pooled

    states = torch.tensor([[[1.0], [4.0], [7.0]], [[3.0], [6.0], [100.0]]])
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
    assert pooled(states, mask).tolist() == [[(1 + 8 + 21) / 6], [(3 + 12) / 3]]


# --- the loss


@pytest.fixture(scope="module")
def base(tiny_model: Path) -> tuple[Any, Any]:
    return loaded(tiny_model)


def tokenised(base: tuple[Any, Any], debates: list[Interaction]) -> list[TokenGraph]:
    tokenise = GraphTokeniser(base[1], vocab_size=base[0].get_input_embeddings().num_embeddings)
    return [tokenise(item) for item in debates]


@contextmanager
def trainer_of(base: tuple[Any, Any], settings: MAGDiSettings, work: Path) -> Iterator[Any]:
    """Ours over the three debates, its adapter a little away from nothing, dropout off."""
    import torch

    from trainers.tuning.magdi_loop import MAGDiTrainer, Training
    from trainers.tuning.sft_loop import adapted

    with adapted(base[0], settings, None) as peft_model:
        run = Training(peft_model, tokenised(base, DEBATES), 0, settings, SavedPlace(cursor=START), 0, None)
        trainer = MAGDiTrainer(run, "ada", peft_model, settings, work)
        torch.manual_seed(2)
        for weight in peft_model.parameters():
            if weight.requires_grad:
                weight.data += 0.05 * torch.randn_like(weight)
        peft_model.eval()
        yield trainer


def gradients_of(model: Any) -> dict[str, Any]:
    found = {name: weight.grad for name, weight in model.named_parameters() if weight.requires_grad}
    model.zero_grad()
    return found


def loss_of(trainer: Any, graphs: list[TokenGraph]) -> Any:
    from trainers.tuning.magdi_loop import collate

    batches = [trainer._prepare_inputs(collate(graph)) for graph in graphs]
    total = trainer._count(batches)
    return sum(trainer.compute_loss(trainer.model, batch, num_items_in_batch=total) for batch in batches)


def plain_loss(model: Any, graphs: list[TokenGraph], settings: MAGDiSettings) -> tuple[Any, list[float]]:
    """The same, one answer at a time and with nothing but loops: the loss, and its three terms."""
    import torch

    heads, head_of = model.graph_heads, dict(model.graph_heads.named_parameters())
    language, nodes, margins = [], [], []
    for graph in graphs:
        states, said = [], []
        for row in graph.rows:
            ids = torch.tensor([row.input_ids], device=device())
            out = model(input_ids=ids, output_hidden_states=True)
            log_probs = torch.log_softmax(out.logits[0], -1)
            start = len(row.prompt_ids)
            said.append([-log_probs[at - 1, row.input_ids[at]] for at in range(start, row.num_tokens)])
            hidden = out.hidden_states[-1][0]
            if settings.node_features == "base":
                with torch.no_grad(), model.disable_adapter():
                    states.append((hidden, model(input_ids=ids, output_hidden_states=True).hidden_states[-1][0]))
            else:
                states.append((hidden, hidden))
        learner, seen = (
            [
                sum((at + 1) * one[side][at] for at in range(len(one[side]))) / sum(range(1, len(one[side]) + 1))
                for one in states
            ]
            for side in (0, 1)
        )
        into = {node: {one for one, other in graph.edges if other == node} | {node} for node in range(len(graph.rows))}

        def step(values: list[Any], name: str, into: dict[int, set[int]] = into) -> list[Any]:
            weight, bias = head_of[f"{name}.weight"], head_of[f"{name}.bias"]
            return [
                sum((values[one] @ weight) / math.sqrt(len(into[one]) * len(into[node])) for one in sorted(into[node]))
                + bias
                for node in into
            ]

        classes = step([torch.relu(value) for value in step(seen, "first")], "second")
        for node, right in enumerate(graph.right):
            nodes.append(torch.logsumexp(classes[node], 0) - classes[node][int(right)])
        for one, other in graph.pairs:
            language += said[one]
            if other is not None:
                high, low = heads.scorer(learner[one])[0], heads.scorer(learner[other])[0]
                margins.append(torch.clamp(1 - (high - low), min=0))
    terms = [sum(found) / max(len(found), 1) for found in (language, nodes, margins)]
    loss = sum(weight * term for weight, term in zip(settings.weights, terms, strict=True))
    return loss, [float(torch.as_tensor(term).detach()) for term in terms]


@training
@pytest.mark.parametrize(
    ("features", "places"),
    [("student", (0, 1, 2)), ("base", (0, 1)), ("student", (2,))],
    ids=["all", "base", "no wrong"],
)
def test_loss_and_gradients_are_those_of_the_plain_reference(
    base: tuple[Any, Any], tmp_path: Path, features: Any, places: tuple[int, ...]
) -> None:
    settings = msgspec.structs.replace(SETTINGS, node_features=features, node_weight=0.7, margin_weight=0.3)
    graphs = [tokenised(base, DEBATES)[at] for at in places]
    with trainer_of(base, settings, tmp_path) as trainer:
        loss = loss_of(trainer, graphs)
        loss.backward()
        ours, terms = gradients_of(trainer.model), trainer._terms.tolist()
        wanted, wanted_terms = plain_loss(trainer.model, graphs, settings)
        wanted.backward()
        plain = gradients_of(trainer.model)
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-5)
    assert terms == pytest.approx(wanted_terms, rel=1e-5)
    assert (terms[2] == 0.0) == (places == (2,))  # there a batch without a wrong answer is set against the text "NA"
    for name, gradient in plain.items():
        if gradient is None or ours[name] is None:
            assert gradient is None or gradient.abs().max() == 0, name
            assert ours[name] is None or ours[name].abs().max() == 0, name
            continue
        assert (ours[name] - gradient).abs().max() <= 1e-5 * max(1.0, gradient.abs().max()), name
    assert sum(gradient is not None and gradient.abs().max() > 1e-4 for gradient in plain.values()) > 8


@training
def test_nodes_move_the_adapter_only_as_the_student_sees_them(base: tuple[Any, Any], tmp_path: Path) -> None:
    """The released code reads features from a file of the untrained model: no node's loss meets the student."""
    for features, moved in (("student", True), ("base", False)):
        settings = msgspec.structs.replace(SETTINGS, node_features=features, language_weight=0.0, margin_weight=0.0)
        with trainer_of(base, settings, tmp_path) as trainer:
            loss_of(trainer, tokenised(base, DEBATES)).backward()
            found = gradients_of(trainer.model)
        largest = max(grad.abs().max().item() for name, grad in found.items() if "lora_" in name and grad is not None)
        assert (largest > 1e-6) is moved
        assert found["graph_heads.first.weight"].abs().max() > 1e-6


@training
def test_a_node_is_the_same_whatever_lies_beside_it(base: tuple[Any, Any], tmp_path: Path) -> None:
    """Terms of a debate whose longest answer grows: all but that answer's stay, whatever padding they get."""
    longer = msgspec.structs.replace(DEBATES[1], replies=("5", "Four", "22" * 40, "I stay with 22."))
    short, long = tokenised(base, [DEBATES[1], longer])
    apart = [msgspec.structs.replace(graph, edges=(), pairs=((1, 0),)) for graph in (short, long)]
    with trainer_of(base, SETTINGS, tmp_path) as trainer:
        from trainers.tuning.magdi_loop import collate

        batches = [trainer._prepare_inputs(collate(graph)) for graph in apart]
        before, after = (trainer.terms(trainer.model, batch).tolist() for batch in batches)
    assert (after[0], after[2]) == pytest.approx((before[0], before[2]), rel=1e-5)
    assert after[1] != pytest.approx(before[1], rel=1e-5)  # the node itself did change


# --- trainings


def weights_of(folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return dict(load_file(folder / "adapter_model.safetensors"))


@training
def test_all_three_terms_fall_and_a_plain_adapter_is_left(base: tuple[Any, Any], tmp_path: Path) -> None:
    import torch
    from peft import PeftModel

    model, tokenizer = base
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    settings = msgspec.structs.replace(
        SETTINGS,
        epochs=40,
        gradient_accumulation=3,
        learning_rate=3e-3,
        hidden=64,
        dropout=0.05,
        target_modules="all-linear",
    )
    result = train_on_graphs(model, tokenizer, DEBATES, settings, agent="ada", output=tmp_path / "out")
    after = model.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    assert not {"forward", "peft_config"} & set(vars(model))
    for figures, share in zip(result.terms.values(), (0.9, 0.8, 0.5), strict=True):
        assert sum(figures[-5:]) < share * sum(figures[:5]), figures
    assert result.losses[0] == pytest.approx(
        sum(weight * figures[0] for weight, figures in zip(settings.weights, result.terms.values(), strict=True)),
        rel=1e-4,
    )
    assert (result.steps, result.rows, result.rows_seen, result.refused) == (40, 3, 120, 0)
    assert (result.nodes, result.pairs) == (11, 6)
    assert result.started_at < result.first_step_at < result.finished_at
    names = ["adapter_config.json", "adapter_model.safetensors", "training.json"]
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == names
    assert all("lora_" in name for name in weights_of(tmp_path / "out"))
    again: Any = PeftModel.from_pretrained(model, str(tmp_path / "out"))
    again.unload()
    vars(model).pop("peft_config", None)
    with pytest.raises(TrainerError, match="exists already; an adapter is written once"):
        train_on_graphs(model, tokenizer, DEBATES, settings, agent="ada", output=tmp_path / "out")


@training
def test_a_training_resumes_to_the_last_bit_from_any_checkpoint(base: tuple[Any, Any], tmp_path: Path) -> None:
    """With dropout in the adapter and between the network's layers, and the network itself, in the checkpoint."""
    import torch

    settings = msgspec.structs.replace(SETTINGS, epochs=2, dropout=0.1, warmup=0.2, schedule="linear")
    kept: list[Path] = []

    def keep(folder: Path, figures: dict[str, float]) -> None:
        kept.append(tmp_path / f"checkpoint-{figures['step']}")
        shutil.copytree(folder, kept[-1])

    def train(output: str, rows: list[Interaction] = DEBATES, **arguments: Any) -> Any:
        return train_on_graphs(*base, rows, settings, agent="ada", output=tmp_path / output, **arguments)

    whole = train("whole", checkpoint_every=1, on_checkpoint=keep)
    assert len(kept) == whole.steps == 4
    wanted = weights_of(tmp_path / "whole")
    for step in (1, 3, 4):  # within the first epoch, within the second, at the very end
        resumed = train(f"from-{step}", resume_from=kept[step - 1])
        assert (resumed.losses, resumed.terms, resumed.rows_seen) == (whole.losses, whole.terms, 6)
        got = weights_of(tmp_path / f"from-{step}")
        assert got.keys() == wanted.keys() and all(torch.equal(got[name], wanted[name]) for name in wanted)
    with pytest.raises(TrainerError, match=r"is of other rows than those that 'ada' now has"):
        train("other", rows=DEBATES[1:], resume_from=kept[0])


@training
def test_what_cannot_be_trained_on_is_told_and_gives_the_base_back(tiny_model: Path, tmp_path: Path) -> None:
    import torch

    model, tokenizer = loaded(tiny_model)
    names = set(model.state_dict())

    def refused(says: str, debates: list[Interaction] = DEBATES, **changes: Any) -> None:
        settings = msgspec.structs.replace(SETTINGS, **changes)
        with pytest.raises(TrainerError, match=says):
            train_on_graphs(model, tokenizer, debates, settings, agent="ada", output=tmp_path / "out")

    refused("no debate has a right answer for 'ada' to learn from", [])
    refused(r"all 3 debates of 'ada' have an answer longer than magdi.max_length=8 tokens; raise", max_length=8)
    refused(r"target_modules=\('nothing',\) names no layer of the base", target_modules=("nothing",))
    with torch.no_grad():
        model.get_input_embeddings().weight[70] = math.nan
    refused(r"training 'ada': the loss of step 1 is nan; lower magdi.learning_rate")
    assert list(tmp_path.iterdir()) == []
    assert set(model.state_dict()) == names
