"""D&R's batch files: what its debates asked, as requests to OpenAI's batch API.

Source: Zhou et al. 2025 (Debate, Reflect and Distill), arXiv:2506.03541; ids as in the authors' released code:
``{id}`` for an answer, ``{id}_{from}_{to}`` for a critique, ``{id}_{agent}_{agent}`` for a reflection.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from protocols.errors import GraphError
from protocols.formats.chats import rows_of
from protocols.formats.common import inexpressible
from protocols.formats.mag import about_whom
from protocols.graph import Debate, Utterance
from protocols.message import Sampling

FORM = "D&R's batch requests"
ENDPOINT = "/v1/chat/completions"


def batch_lines(debates: Iterable[Debate], sampling: Mapping[str, Sampling]) -> Iterator[tuple[str, str]]:
    """(file, line) of every request that brought a reply, in the order of the debates.

    Ids come again in every round and for every agent, so there is a file for each round, phase (answers, or what is
    said about them) and agent: ``0.critique.ada``. Of several tries of one ask the first stands for all.

    Args:
        sampling: by agent, as far as known; seeds are left out, for a request's own is not on record.
    Raises: GraphError: a debate with other turns than these, with images, or of an agent with "_" in its name, which
        is where these ids are cut.
    """
    for debate in debates:
        used: set[tuple[str, str]] = set()
        for node in debate.utterances:
            if "~" in node.id:
                continue
            phase, custom_id = _request_id(debate, node)
            file = f"{node.round}.{phase}.{node.agent}"
            if (file, custom_id) in used:
                raise inexpressible(debate, FORM, f"{node.agent!r} sits in several places, whose ids would be one")
            used.add((file, custom_id))
            request = {"custom_id": custom_id, "method": "POST", "url": ENDPOINT, "body": _body(debate, node, sampling)}
            yield file, json.dumps(request, ensure_ascii=False) + "\n"


def _request_id(debate: Debate, node: Utterance) -> tuple[str, str]:
    """Phase and id."""
    if "_" in node.agent:
        raise GraphError(
            f"debate {debate.id!r} cannot be written as {FORM}: their ids are cut at '_', which agent {node.agent!r} "
            "has in its name; name agents without it"
        )
    if node.phase == "answer":
        return "answer", debate.task.id
    if node.phase in ("critique", "reflect"):
        return "critique", f"{debate.task.id}_{node.agent}_{about_whom(debate, node)}"
    raise inexpressible(debate, FORM, f"{node.id!r} is neither an answer nor a critique nor a reflection")


def _body(debate: Debate, node: Utterance, sampling: Mapping[str, Sampling]) -> dict[str, Any]:
    messages = debate.conversation(node.id)
    if any(message.images for message in messages):
        raise inexpressible(debate, FORM, f"{node.id!r} was shown images, whose bytes the graph does not hold")
    body: dict[str, Any] = {"model": node.reply.model, "messages": rows_of(messages)}
    if drawn := sampling.get(node.agent):
        body |= {"temperature": drawn.temperature, "top_p": drawn.top_p, "max_tokens": drawn.max_tokens}
        body |= {"stop": list(drawn.stop)} if drawn.stop else {}
    return body
