"""Reading the configuration again: whole or not at all, one at a time, with an answer that names settings."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from smtp_edge.configuration import load_configuration
from smtp_edge.reload import Configured, Reloader, ReloadError, Report
from smtp_edge.settings import Settings
from smtp_edge.setup import Plan, create_node

AT = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)


class FakeNode:
    """Goes by whatever it is told."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.count = 0
        self.sessions = 0
        self.fault: Exception | None = None
        self.wait: Callable[[], asyncio.Future[None]] | None = None

    async def reconfigure(self, settings: Settings) -> int:
        self.count += 1
        if self.wait is not None:
            await self.wait()
        if self.fault is not None:
            raise self.fault
        self.settings = settings
        return self.sessions


class Scene:
    def __init__(self, folder: Path) -> None:
        create_node(Plan(folder / "mx1", "mx1", "mesh", "127.0.0.1", None), at=datetime.now(UTC))
        self.path = folder / "mx1" / "node.toml"
        self.told: list[str] = []
        self.node = FakeNode(load_configuration(self.path)[0])
        self.reloader = Reloader(self.path, self.node, self.told.append)

    def write(self, before: str, after: str) -> None:
        text = self.path.read_text()
        assert before in text
        self.path.write_text(text.replace(before, after))

    def append(self, text: str) -> None:
        self.path.write_text(self.path.read_text() + text)


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


@pytest.fixture(autouse=True)
def lines() -> Iterator[list[dict[str, object]]]:
    with capture_logs() as found:
        yield found  # type: ignore[misc]


async def test_nothing_changed_is_nothing_applied(scene: Scene) -> None:
    await scene.reloader.start()
    assert await scene.reloader.reload("sue") == Report()
    assert scene.told == ["configuration reloaded: applied 0 (by sue)"]


async def test_it_says_what_was_applied_and_what_waits_for_a_restart(scene: Scene) -> None:
    await scene.reloader.start()
    scene.node.sessions = 3
    scene.append('\n[limits]\nhops_max = 20\n[metrics]\nlisten = "127.0.0.1:9427"\n')
    report = await scene.reloader.reload("sue")
    assert report == Report(("limits.hops_max",), ("metrics.listen",), sessions=3)
    assert scene.told == ["configuration reloaded: applied 1, needs restart: metrics.listen (by sue)"]
    assert (scene.node.settings.limits.hops_max, scene.node.settings.metrics.listen) == (20, "")
    assert await scene.reloader.reload("sue") == Report((), ("metrics.listen",), sessions=3)


async def test_a_file_with_another_content_is_named_by_its_setting(scene: Scene) -> None:
    await scene.reloader.start()
    bundle = scene.path.parent / "ca.crt"
    bundle.write_bytes(b"# the same authority\n" + bundle.read_bytes())
    assert (await scene.reloader.reload("sue")).applied == ("cluster.ca (content)",)
    assert (await scene.reloader.reload("sue")).applied == ()


async def test_every_mistake_is_a_sentence_and_the_old_configuration_stays(
    scene: Scene, lines: list[dict[str, object]]
) -> None:
    await scene.reloader.start()
    before = scene.node.settings
    scene.append("\n[limits]\nhops_max = 1\n[queue]\nretry_frist_s = 1\n")
    report = await scene.reloader.reload("sue")
    assert report.mistakes == (
        f"{scene.path}: limits.hops_max: must be at least 5 and at most 500, not 1",
        f"{scene.path}: queue.retry_frist_s: unknown key; did you mean retry_first_s?",
    )
    assert scene.node.count == 0
    assert scene.node.settings is before
    assert scene.told == ["configuration refused: 2 mistakes, nothing is changed (by sue)"]
    assert [line["event"] for line in lines] == ["node.reload_refused"]


async def test_files_are_looked_into_before_anything_changes(scene: Scene) -> None:
    await scene.reloader.start()
    (scene.path.parent / "node.crt").write_text("no certificate")
    report = await scene.reloader.reload("sue")
    assert len(report.mistakes) == 1
    assert report.mistakes[0].startswith(f"{scene.path}: cluster: ")
    assert scene.node.count == 0


async def test_what_the_node_cannot_do_is_told_and_the_files_count_as_unread(scene: Scene) -> None:
    await scene.reloader.start()
    scene.node.fault = ReloadError("listener b: cannot listen on 127.0.0.1:25: the port is in use")
    bundle = scene.path.parent / "ca.crt"
    bundle.write_bytes(b"# the same authority\n" + bundle.read_bytes())
    assert (await scene.reloader.reload("sue")).mistakes == (f"{scene.path}: {scene.node.fault}",)
    scene.node.fault = None
    assert (await scene.reloader.reload("sue")).applied == ("cluster.ca (content)",)


async def test_our_own_mistake_is_told_without_its_text(scene: Scene) -> None:
    await scene.reloader.start()
    scene.node.fault = RuntimeError("secret")
    report = await scene.reloader.reload("sue")
    assert report.mistakes == ("it could not be carried out (RuntimeError): see the node's log",)


async def test_a_dry_run_changes_and_tells_nothing(scene: Scene) -> None:
    await scene.reloader.start()
    scene.append("\n[limits]\nhops_max = 20\n")
    assert await scene.reloader.reload("sue", dry_run=True) == Report(("limits.hops_max",))
    assert (scene.node.count, scene.told) == (0, [])
    assert await scene.reloader.reload("sue") == Report(("limits.hops_max",))


async def test_two_at_once_come_one_after_the_other_and_each_is_answered(scene: Scene) -> None:
    await scene.reloader.start()
    held: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    scene.node.wait = lambda: held
    scene.append("\n[limits]\nhops_max = 20\n")
    first = asyncio.create_task(scene.reloader.reload("first"))
    while not scene.node.count:  # noqa: ASYNC110
        await asyncio.sleep(0)
    scene.write("hops_max = 20", "hops_max = 30")
    second = asyncio.create_task(scene.reloader.reload("second"))
    await asyncio.sleep(0)
    assert scene.node.count == 1
    held.set_result(None)
    assert [(await task).applied for task in (first, second)] == [("limits.hops_max",), ("limits.hops_max",)]
    assert scene.node.settings.limits.hops_max == 30


async def test_signals_that_come_together_are_one_and_one_that_comes_later_is_another(scene: Scene) -> None:
    await scene.reloader.start()
    held: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    scene.node.wait = lambda: held
    for _ in range(5):
        scene.reloader.hang_up()
    while not scene.node.count:  # noqa: ASYNC110
        await asyncio.sleep(0)
    for _ in range(5):
        scene.reloader.hang_up()
    await asyncio.sleep(0)
    held.set_result(None)
    assert await scene.reloader.reload("last") == Report()
    assert scene.node.count == 3
    assert [text.rpartition("(")[2] for text in scene.told] == ["by signal)", "by signal)", "by last)"]


async def test_a_signal_before_the_node_runs_waits_for_that(scene: Scene) -> None:
    scene.reloader.hang_up()
    await asyncio.sleep(0)
    assert scene.node.count == 0
    await scene.reloader.start()
    await scene.reloader.reload("sue")
    assert scene.node.count == 2


async def test_a_node_that_stops_is_not_reconfigured(scene: Scene) -> None:
    await scene.reloader.start()
    await scene.reloader.stop()
    assert (await scene.reloader.reload("sue")).mistakes == ("the node stops",)
    assert scene.node.count == 0


async def test_what_a_reload_left_open_is_there_to_be_asked_for(scene: Scene) -> None:
    clock = iter([AT, AT + timedelta(minutes=1), AT + timedelta(minutes=2)])
    reloader = Reloader(scene.path, scene.node, scene.told.append, clock=lambda: next(clock))
    await reloader.start()
    assert reloader.configured == Configured(AT)
    scene.append('\n[metrics]\nlisten = "127.0.0.1:9427"\n')
    await reloader.reload("sue")
    assert reloader.configured == Configured(AT + timedelta(minutes=1), ("metrics.listen",))
    scene.append("\n[limits]\nhops_max = 1\n")
    refused = await reloader.reload("sue")
    assert reloader.configured == Configured(AT + timedelta(minutes=1), ("metrics.listen",), refused.mistakes)
    scene.write("hops_max = 1", "hops_max = 10")
    await reloader.reload("sue")
    assert reloader.configured == Configured(AT + timedelta(minutes=2), ("metrics.listen",))
