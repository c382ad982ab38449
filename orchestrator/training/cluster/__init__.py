"""Runs the stages of the loop on a Ray cluster: slots, actors and calls. No other package of
training imports Ray.
"""

from __future__ import annotations

import os

# Ray reads this when it is imported. Without it, Ray's C++ code handles SIGTERM in every process
# that connects to a cluster: it prints a stack trace and aborts the process 3 s later, in the middle
# of an orderly stop.
os.environ.setdefault("RAY_DISABLE_FAILURE_SIGNAL_HANDLER", "1")
