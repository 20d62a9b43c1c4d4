"""A node under the profiler of the standard library: `python -m tests.bench.relays.profiled FILE run --config ...`.

What the thread of the event loop called, and how long it was there, is in FILE when the node has ended.
"""

from __future__ import annotations

import cProfile
import sys

from smtp_edge.cli import main


def run(file: str, words: list[str]) -> None:
    """The command `smtpmesh` with these words."""
    sys.argv[1:] = words
    profile = cProfile.Profile(builtins=False)
    profile.enable()
    try:
        main()
    finally:
        profile.disable()
        profile.dump_stats(file)


if __name__ == "__main__":
    run(sys.argv[1], sys.argv[2:])
