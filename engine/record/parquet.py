"""Finished debates as Parquet files for Ray Data and other tools of tables: ``moot export parquet``.

One row an utterance, so that a table can be filtered and counted without moot; a debate's rows follow each other, and
what is said of the debate as a whole is on each of them. Written in row groups: memory is bounded by one of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from protocols.graph import Debate, Utterance

if TYPE_CHECKING:
    import pyarrow as pa

PART = "part-*.parquet"
ROW_GROUP = 1024  # utterances
ROWS_A_FILE = 256 * ROW_GROUP  # so that many workers have something to read

COLUMNS = {
    "debate_id": "string",
    "task_id": "string",
    "question": "string",
    "gold": "list<string>",
    "held_out": "bool",
    "protocol": "string",
    "verdict": "string",  # null: the debate came to no answer
    "verdict_correct": "bool",
    "stop_reason": "string",
    "oracle": "bool",
    "id": "string",  # of the utterance, unique in its debate
    "position": "int32",  # in the order they were recorded
    "agent": "string",
    "role": "string",
    "round": "int32",
    "phase": "string",
    "prompt": "list<message>",  # the whole conversation, as it was sent
    "text": "string",
    "answers": "bool",
    "answer": "string",
    "correct": "bool",
    "saw": "list<edge>",  # earlier utterances and how they were used
    "model": "string",
    "adapter": "string",
    "prompt_tokens": "int32",
    "completion_tokens": "int32",
    "cost_usd": "float64",
    "latency_s": "float64",
    "finish_reason": "string",
    "token_ids": "list<int32>",
    "logprobs": "list<float32>",  # in step with token_ids; both empty where a backend does not tell
}
"""Column -> its type; ``message`` is {role, text}, ``edge`` is {source, kind}."""


def schema() -> pa.Schema:
    """The one schema of all files."""
    import pyarrow as pa

    message = pa.struct([("role", pa.string()), ("text", pa.string())])
    edge = pa.struct([("source", pa.string()), ("kind", pa.string())])
    types = {
        "string": pa.string(),
        "bool": pa.bool_(),
        "int32": pa.int32(),
        "float64": pa.float64(),
        "list<int32>": pa.list_(pa.int32()),
        "list<float32>": pa.list_(pa.float32()),
        "list<string>": pa.list_(pa.string()),
        "list<message>": pa.list_(message),
        "list<edge>": pa.list_(edge),
    }
    return pa.schema([(name, types[kind]) for name, kind in COLUMNS.items()], metadata={"moot.schema_version": "1"})


def rows_of(debate: Debate) -> Iterator[dict[str, Any]]:
    """A row an utterance; of a debate that nobody spoke in, none."""
    verdict = debate.verdict
    whole = {
        "debate_id": debate.id,
        "task_id": debate.task.id,
        "question": debate.task.question,
        "gold": list(debate.task.gold),
        "held_out": debate.task.held_out,
        "protocol": debate.protocol,
        "verdict": verdict and verdict.answer,
        "verdict_correct": verdict and verdict.correct,
        "stop_reason": verdict and verdict.stop_reason,
        "oracle": verdict and verdict.oracle,
    }
    for position, node in enumerate(debate.utterances):
        yield whole | _spoken(debate, node) | {"position": position}


def _spoken(debate: Debate, node: Utterance) -> dict[str, Any]:
    reply = node.reply
    return {
        "id": node.id,
        "agent": node.agent,
        "role": node.role,
        "round": node.round,
        "phase": node.phase,
        "prompt": [{"role": each.role, "text": each.text} for each in debate.conversation(node.id)],
        "text": reply.text,
        "answers": node.answers,
        "answer": node.answer.value,
        "correct": node.correct,
        "saw": [{"source": edge.source, "kind": edge.kind} for edge in debate.edges if edge.target == node.id],
        "model": reply.model,
        "adapter": reply.adapter,
        "prompt_tokens": reply.usage.prompt_tokens,
        "completion_tokens": reply.usage.completion_tokens,
        "cost_usd": reply.cost_usd,
        "latency_s": reply.latency_s,
        "finish_reason": reply.finish_reason,
        "token_ids": list(reply.token_ids),
        "logprobs": list(reply.logprobs),
    }


def write_parquet(folder: Path, debates: Iterable[Debate], *, rows_a_file: int = ROWS_A_FILE) -> int:
    """Write ``part-00000.parquet`` and as many more as are needed. Returns: the rows."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = chain.from_iterable(map(rows_of, debates))
    made, number, total = schema(), 0, 0
    first = list(islice(rows, 1))
    while first:
        written = 0
        with pq.ParquetWriter(folder / f"part-{number:05d}.parquet", made, compression="zstd") as file:
            while written < rows_a_file and (group := [*first, *islice(rows, ROW_GROUP - len(first))]):
                file.write_table(pa.Table.from_pylist(group, schema=made), row_group_size=ROW_GROUP)
                written, first = written + len(group), []
        number, total = number + 1, total + written
        first = list(islice(rows, 1))
    return total
