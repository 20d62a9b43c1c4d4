"""Readers together, or a checkpoint alone: between the threads of one store.

A checkpoint that meets a reader's snapshot stops half-way (faults.py says why it must not). Readers are short, but for
the one count at a start; so a routine checkpoint that finds readers comes back later, and only one that cannot wait
waits.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Gate:
    """See the module."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._readers = 0
        self._closed = False

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Together with other readers; waits while somebody is alone."""
        with self._changed:
            self._changed.wait_for(lambda: not self._closed)
            self._readers += 1
        try:
            yield
        finally:
            with self._changed:
                self._readers -= 1
                self._changed.notify_all()

    @contextmanager
    def alone(self, *, wait: bool) -> Iterator[bool]:
        """Without readers; False, at once, if there are some and one is not to wait. Readers that come now wait."""
        with self._changed:
            entered = wait or not self._readers
            if entered:
                self._closed = True
                self._changed.wait_for(lambda: not self._readers)
        if not entered:
            yield False
            return
        try:
            yield True
        finally:
            with self._changed:
                self._closed = False
                self._changed.notify_all()
