"""Ends vLLM's processes with the rollout worker that started them, also if it was killed.

vLLM calls `end_with_parent` in each of its processes, because pyproject.toml declares it as a plug-in
(`vllm.general_plugins`). Without it the processes of a killed worker would keep their GPU memory.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from multiprocessing.process import BaseProcess


def end_with_parent() -> None:
    """End this process when the one that started it ends; do nothing in a process without such a parent."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_kill_after, args=(parent,), name="end-with-parent", daemon=True).start()


def _kill_after(parent: BaseProcess) -> None:
    parent.join()
    os.kill(os.getpid(), signal.SIGKILL)
