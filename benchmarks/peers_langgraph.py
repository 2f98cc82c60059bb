"""Debates on langgraph: a graph of six nodes, three side by side and three again, and one that counts votes.

``abatch`` runs all debates; there is no checkpointer, so that nothing is on record either.
"""

from __future__ import annotations

import asyncio
import operator
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Annotated, Any, TypedDict

from langgraph.graph import END, START, StateGraph

from benchmarks.peers_work import (
    AGENTS,
    MAX_TOKENS,
    MODEL,
    Ask,
    Chat,
    Clock,
    Debates,
    Setup,
    openai_http,
    opening,
    revision,
    scripted,
    verdict,
)


class State(TypedDict):
    question: str
    opened: Annotated[dict[int, str], operator.or_]
    revised: Annotated[dict[int, str], operator.or_]
    verdict: str


def _graph(ask: Ask) -> Any:
    graph: Any = StateGraph(State)

    def opens(seat: int) -> Any:
        async def node(state: State) -> dict[str, Any]:
            return {"opened": {seat: await ask(opening(state["question"]))}}

        return node

    def revises(seat: int) -> Any:
        async def node(state: State) -> dict[str, Any]:
            others = [text for other, text in sorted(state["opened"].items()) if other != seat]
            return {"revised": {seat: await ask(revision(state["question"], state["opened"][seat], others))}}

        return node

    def judge(state: State) -> dict[str, Any]:
        return {"verdict": verdict(list(state["revised"].values()))}

    for seat, name in enumerate(AGENTS):
        graph.add_node(f"{name} opens", opens(seat))
        graph.add_node(f"{name} revises", revises(seat))
        graph.add_edge(START, f"{name} opens")
    openers = [f"{name} opens" for name in AGENTS]
    for name in AGENTS:
        graph.add_edge(openers, f"{name} revises")
    graph.add_node("judge", judge)
    graph.add_edge([f"{name} revises" for name in AGENTS], "judge")
    graph.add_edge("judge", END)
    return graph.compile()


@asynccontextmanager
async def debates(setup: Setup) -> AsyncIterator[Debates]:
    http = openai_http(setup) if setup.url else None
    graph = _graph(_asking(setup, http) if setup.url else scripted)

    async def run(questions: Sequence[str], clock: Clock) -> list[str]:
        given = [{"question": question, "opened": {}, "revised": {}} for question in questions]
        done = await graph.abatch(given, {"max_concurrency": setup.in_flight})
        return [state["verdict"] for state in done]

    try:
        yield run
    finally:
        if http is not None:
            await http.aclose()


def _asking(setup: Setup, http: Any) -> Ask:
    from langchain_core.messages import AIMessage, HumanMessage
    from langchain_openai import ChatOpenAI

    kinds: dict[str, Any] = {"user": HumanMessage, "assistant": AIMessage}
    given: dict[str, Any] = {"model": MODEL, "base_url": setup.url, "api_key": "none", "max_tokens": MAX_TOKENS}
    model = ChatOpenAI(**given, temperature=1.0, max_retries=0, timeout=600, http_async_client=http)
    slots = asyncio.Semaphore(setup.in_flight)

    async def ask(chat: Chat) -> str:
        messages = [kinds[item["role"]](item["content"]) for item in chat]
        async with slots:
            return str((await model.ainvoke(messages)).content)

    return ask
