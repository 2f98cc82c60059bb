"""Debates for tools that look at graphs: GraphML, and networkx's node-link JSON."""

from __future__ import annotations

import json
import re
from typing import Any

from protocols.graph import Debate, to_networkx

_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def graphml(debate: Debate) -> str:
    """One GraphML document.

    GraphML knows no missing value, so what is None is left out; characters that XML cannot hold are spelled out.
    """
    import networkx as nx  # 0.3 s: only those who export graphs pay for it

    graph = to_networkx(debate)
    graph.graph = _flat(graph.graph)
    for _, data in graph.nodes(data=True):
        _flatten(data)
    for _, _, data in graph.edges(data=True):
        _flatten(data)
    return "\n".join(nx.generate_graphml(graph)) + "\n"


def _flatten(data: dict[str, Any]) -> None:
    flat = _flat(data)
    data.clear()
    data.update(flat)


def _flat(data: dict[str, Any]) -> dict[str, Any]:
    return {
        key: _NOT_XML.sub(lambda match: f"⟨U+{ord(match.group()):04X}⟩", value) if isinstance(value, str) else value
        for key, value in data.items()
        if value is not None
    }


def node_link(debate: Debate) -> str:
    """One JSON document, as ``networkx.node_link_graph`` reads it."""
    import networkx as nx

    return json.dumps(nx.node_link_data(to_networkx(debate), edges="edges"), ensure_ascii=False, indent=2) + "\n"
