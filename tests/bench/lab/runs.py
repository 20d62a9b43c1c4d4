"""What benches of meshes in virtual time share: silence, and a command line that plays meshes and prints bars."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from concurrent.futures import Executor, ProcessPoolExecutor

import structlog

from tests.bench.lab.bars import Row, show


def hush() -> None:
    """No log in this process: what a mesh of relays says is nobody's here."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))


def run_meshes(description: str | None, bars: Callable[[Executor, int], list[Row]]) -> None:
    """`--meshes 10`: play so many on all cores, and print the rows."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--meshes", type=int, default=10)
    arguments = parser.parse_args()
    began = time.monotonic()
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        print(show(bars(pool, arguments.meshes)))
    print(f"{arguments.meshes} meshes; {time.monotonic() - began:.0f} s")
