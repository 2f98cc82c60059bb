"""What MAGDi trains beside the student: a network over the interaction graph, and a scorer of answers.

Only processes that train import this module: it pulls in torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

DROPOUT = 0.5  # the released code's, between the two layers
MARGIN = 1.0  # that a right answer's score is to be above a wrong one's; scores lie between -1 and 1
NUM_CLASSES = 2  # wrong, right
# N: nodes of a graph; T: tokens of the longest; D: width of the model, or of a layer's input; E: of its output.


def gathering(edges: Iterable[tuple[int, int]], num_nodes: int) -> Tensor:
    """[N, N]: how much of a source (second) a target (first) takes in, itself included.

    That is D^-1/2 (A + I) D^-1/2, where D counts what leads into a node and the loop on it, for directed edges as
    torch_geometric's GCNConv has it: what is taken in is weighed by the degrees of both.

    Source: Kipf and Welling 2017 (GCN), arXiv:1609.02907, eq. 2, where edges have no direction.
    """
    takes = torch.eye(num_nodes)
    for source, target in edges:
        takes[target, source] = 1.0
    scale = takes.sum(1).rsqrt()
    return scale[:, None] * takes * scale[None, :]


class GraphLayer(nn.Module):
    """One step along the edges: nodes times weights, gathered, plus a bias. First weights are drawn as GCNConv's."""

    def __init__(self, width_in: int, width_out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width_in, width_out))
        self.bias = nn.Parameter(torch.zeros(width_out))
        bound = math.sqrt(6.0 / (width_in + width_out))
        nn.init.uniform_(self.weight, -bound, bound)

    def forward(self, nodes: Tensor, gathers: Tensor) -> Tensor:
        """From nodes [N, D] and ``gathering`` [N, N] to [N, E]."""
        return gathers @ (nodes @ self.weight) + self.bias


class GraphHeads(nn.Module):
    """The graph network, of two layers, and the scorer: in float32, thrown away when the student is trained."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.first, self.second = GraphLayer(width, hidden), GraphLayer(hidden, NUM_CLASSES)
        self.dropout = nn.Dropout(DROPOUT)
        self.scorer = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 1), nn.Tanh())

    def classes(self, nodes: Tensor, gathers: Tensor) -> Tensor:
        """From nodes [N, D] to the logits of their classes [N, 2]."""
        logits: Tensor = self.second(self.dropout(torch.relu(self.first(nodes, gathers))), gathers)
        return logits

    def scores(self, nodes: Tensor) -> Tensor:
        """From nodes [N, D] to [N], between -1 and 1."""
        scores: Tensor = self.scorer(nodes)
        return scores.squeeze(-1)


def pooled(states: Tensor, mask: Tensor) -> Tensor:
    """From states [N, T, D] and a mask [N, T] to [N, D] float32: a mean over tokens of weights 1, 2, 3, ...

    Padding stands behind and has no part. In the released code it stands before and is counted, so that there a node's
    features depend on what else is in its batch.

    Source: Muennighoff 2022 (SGPT), arXiv:2202.08904; MAGDi's code pools like that.
    """
    weights = mask * torch.arange(1, mask.size(1) + 1, device=mask.device)
    return (states.float() * weights[..., None]).sum(1) / weights.sum(1, keepdim=True)
