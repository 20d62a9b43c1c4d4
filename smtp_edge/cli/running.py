"""`run`: a node in one process, the supervisor of several, or one worker of a supervisor."""

from __future__ import annotations

from pathlib import Path

from smtp_edge.cli.common import EXIT_NOT_DONE, load_settings


def run_node(config: Path) -> int:
    """A node as its configuration wants it; the exit code."""
    settings = load_settings(config)
    from smtp_edge.supervisor import needs_supervisor, supervise

    if needs_supervisor(settings):
        return supervise(settings, config)
    from smtp_edge import node

    return node.run(settings, config)


def run_worker(config: Path, number: int, count: int | None, supervisor: int | None) -> int:
    """One worker; the exit code."""
    from smtp_edge.supervisor import end_with

    if supervisor is not None and not end_with(supervisor):
        return EXIT_NOT_DONE
    settings = load_settings(config, warn=supervisor is None)  # the supervisor has shown the warnings
    from smtp_edge import node
    from smtp_edge.workers import Worker

    worker = Worker(number, count or settings.node.workers)
    whole = settings.node.model_copy(update={"workers": worker.count})
    return node.run(worker.derive(settings.model_copy(update={"node": whole})), config, worker)
