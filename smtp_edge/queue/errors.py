"""What a store says when it cannot do what was asked."""

from __future__ import annotations


class StoreError(Exception):
    """The store cannot do what was asked; `str()` is a sentence for the log. Nothing was changed."""


class StoreFull(StoreError):
    """No space left: the client is told 452 and keeps the message."""


class StoreDoubt(StoreError):
    """The disk failed while it was to make the change last: after a crash it may be there, or not.

    Whoever asked for it goes on as if it were not. Files that the change names are left alone: the store removes them
    once it knows.
    """
