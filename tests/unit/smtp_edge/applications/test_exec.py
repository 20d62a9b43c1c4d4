"""Programs as sinks: verdicts by exit code, and programs that are slow, greedy, deaf or leave children behind."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path

import pytest

from smtp_edge.applications.exec import OUTPUT_BYTES_MAX, Exec
from smtp_edge.sinks.chain import Binding, SinkChain, SinkError
from smtp_edge.sinks.testing import Outcome, ask

MAIL = b"Subject: x\r\n\r\nhello\r\n.dot\r\n"
FAILED = "451 4.3.0 local error in processing"


def script(directory: Path, text: str) -> str:
    path = directory / "judge"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


async def run(
    directory: Path, text: str, mail: bytes = MAIL, timeout_s: float = 10, policy: str = "tempfail"
) -> Outcome:
    binding = Binding("exec", Exec([script(directory, text)]), timeout_s=timeout_s, on_failure=policy)
    return await ask([binding], mail, sender="sue@example.net", recipients=("ann@a.test", "bob@b.test"))


async def test_it_reads_the_message_and_adds_fields_in_its_order(tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    outcome = await run(tmp_path, f"cat > {copy}\nprintf 'X-One: 1\\nX-Two: a\\n folded\\n'")
    assert copy.read_bytes() == MAIL
    assert outcome.content == b"X-One: 1\r\nX-Two: a folded\r\n" + MAIL


@pytest.mark.parametrize(
    ("text", "reply"),
    [
        ("echo no spam please; exit 77", "550 5.7.1 no spam please"),
        ("exit 65", "550 5.7.1 the message was refused"),
        ("echo later; echo more; exit 75", "451 4.3.0 later"),
        ("printf 'a\\tb\\001c\\n'; exit 69", "550 5.7.1 abc"),
        ("exit 1", FAILED),
        ("kill -9 $$", FAILED),
        ("echo this is no field", FAILED),
        ("printf 'X-A: 1\\n\\nbody\\n'", FAILED),
        (f"head -c {OUTPUT_BYTES_MAX + 1} /dev/zero", FAILED),
        ("yes", FAILED),
    ],
)
async def test_the_exit_code_is_the_verdict(tmp_path: Path, text: str, reply: str) -> None:
    assert (await run(tmp_path, text)).reply == reply


async def test_it_knows_the_envelope_and_nothing_of_us(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "x")
    seen = tmp_path / "seen"
    assert (await run(tmp_path, f"env > {seen}")).reply == ""
    lines = seen.read_text()
    assert "SMTPMESH_SENDER=sue@example.net\n" in lines
    assert "SMTPMESH_RECIPIENTS=ann@a.test\nbob@b.test\n" in lines
    assert "SECRET" not in lines


async def test_one_that_does_not_read_its_input_is_no_failure(tmp_path: Path) -> None:
    mail = b"Subject: x\r\n\r\n" + b"y" * 70 + b"\r\n" * 1_000_000
    assert (await run(tmp_path, "exit 0", mail)).content == mail


async def test_one_that_outlives_its_time_is_killed_with_its_children(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    text = f"sleep 1000 & echo $! >> {pids}\necho $$ >> {pids}\nwait"
    outcome = await run(tmp_path, text, timeout_s=2, policy="quarantine")
    assert [reason for _, reason in outcome.held] == ["sink exec gave no answer in time"] * 2
    deadline = time.monotonic() + 5
    numbers = [int(number) for number in re.findall(r"\d+", pids.read_text())]
    assert len(numbers) == 2
    while any(map(_runs, numbers)):
        assert time.monotonic() < deadline


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"command": "judge"}, "list of words"),
        ({"command": []}, "list of words"),
        ({"command": ["judge"]}, "absolute path"),
        ({"command": ["/bin/true"], "processes_max": 0}, "at least 1"),
    ],
)
def test_settings_that_mean_nothing_are_named(settings: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Exec(**settings)  # type: ignore[arg-type]


async def test_a_program_that_is_not_there_keeps_the_node_from_starting() -> None:
    with pytest.raises(SinkError, match="/nowhere/judge is no program"):
        await SinkChain([Binding("exec", Exec(["/nowhere/judge"]))]).start()
    assert os.access("/bin/sh", os.X_OK)
