"""Formats of other systems: text in, debates out, and back. Pure; ``engine.transfer`` opens the files."""

from protocols.formats.llava import read_llava, write_llava
from protocols.formats.m2d import read_m2d, write_m2d
from protocols.formats.mad import read_mad, write_mad
from protocols.formats.maft import read_maft, write_maft
from protocols.formats.mag import read_mag, write_mag
from protocols.formats.mag_batch import batch_lines
from protocols.formats.magdi import read_magdi, write_magdi, write_magdi_graph
from protocols.formats.network import graphml, node_link
from protocols.formats.rows import messages_rows, preference_rows, right_turns, sft_row

__all__ = [
    "batch_lines",
    "graphml",
    "messages_rows",
    "node_link",
    "preference_rows",
    "read_llava",
    "read_m2d",
    "read_mad",
    "read_maft",
    "read_mag",
    "read_magdi",
    "right_turns",
    "sft_row",
    "write_llava",
    "write_m2d",
    "write_mad",
    "write_maft",
    "write_mag",
    "write_magdi",
    "write_magdi_graph",
]
