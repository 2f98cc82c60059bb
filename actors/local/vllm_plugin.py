"""What vLLM runs in each of its processes: an engine of ours ends with the process that it works for.

vLLM's engine process outlives a host that is killed, and holds on to its GPU, so that the host could not be started
again. Registered as a ``vllm.general_plugins`` entry point; does nothing in processes that are none of ours.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import threading

MARK = "MOOT_ENGINE"  # set in the environment of hosts that run vLLM


def follow_parent() -> None:
    """End this process when the one that started it has ended. Call it in the child."""
    parent = multiprocessing.parent_process()
    if parent is None or not os.environ.get(MARK):
        return

    def wait() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=wait, name="follow-parent", daemon=True).start()
