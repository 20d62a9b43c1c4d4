"""The queues of workers that are no more: `[node] workers` was lowered, and what they took must not be forgotten."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from smtp_edge.queue.leftover import count_mail
from smtp_edge.settings import Settings
from smtp_edge.workers import Worker, find_folders

QUEUE = "queue"
"""In a data_dir."""


@dataclass(frozen=True, slots=True)
class Stranded:
    """A worker that is no more, and its mail."""

    worker: Worker
    folder: Path
    count: int
    """Messages that are not over."""

    def __str__(self) -> str:
        what = f"{self.count} message{'s' * (self.count > 1)}"
        return f"{self.folder} holds {what} of worker {self.worker.number}, and workers = {self.worker.count}"


def find_stranded(settings: Settings) -> list[Stranded]:
    """In the order of their numbers. Reads the disk; nothing there is changed."""
    count = settings.node.workers
    found = [
        Stranded(Worker(number, count), folder, count_mail(folder / QUEUE))
        for number, folder in find_folders(settings.node.data_dir).items()
        if number > count
    ]
    return [item for item in found if item.count]
