"""What an arena tells of itself."""

from __future__ import annotations

import msgspec

from protocols.message import Usage


class ArenaStats(msgspec.Struct, frozen=True, kw_only=True):
    """Running totals of one arena since it started. ``open`` counts debates taken on and not yet ready to collect."""

    open: int = 0
    closed: int = 0
    replies: int = 0
    failures: int = 0
    late: int = 0
    usage: Usage = Usage()
    delays: tuple[int, ...] = ()  # from a reply's arrival until what it enables leaves: see actors.post.histogram
    commits: int = 0  # to the journal; together they took ``commit_s`` and held ``entries``
    commit_s: float = 0.0
    entries: int = 0
    journal_bytes: int = 0
    uncopied: int = 0  # events that are not in the mirror yet
    copy_age_s: float = 0.0  # all that is older is in it
    copy_error: str = ""  # why nothing is copied at present
    error: str = ""
    paused: str = ""  # why a host sends nothing more; what is on record stays, and the run can go on later
