"""What the page smtp_edge/sinks/WRITING.md says, done word for word: its code is a package, is installed, is found by
its entry point, passes its test with the kit, and fires in a node."""

from __future__ import annotations

import importlib.util
import os
import re
import smtplib
import subprocess
import sys
from pathlib import Path

import pytest

import smtp_edge.sinks
from smtp_edge.demo.cluster import SOURCE_ROOT, Cluster
from tests.e2e.keeper import Keeper
from tests.e2e.scene import wait_until

PAGE = Path(smtp_edge.sinks.__file__).with_name("WRITING.md").read_text("utf-8")
PROJECT = """\
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"

[project]
name = "greeting"
version = "1"

[tool.setuptools]
py-modules = ["greeting"]

"""
BINDING = """\
[[sink]]
use = "greeting"
rule = "rcpt to=*@example.org"
with = { text = "good morning" }
"""
INSTALL = ["install", "--quiet", "--no-deps", "--no-build-isolation", "--target"]


def block(kind: str, word: str) -> str:
    """The block of code of the page that has the word."""
    found = [text for text in re.findall(rf"```{kind}\n(.*?)```", PAGE, re.DOTALL) if word in text]
    assert len(found) == 1, f"{len(found)} blocks of {kind} have {word!r}"
    return str(found[0])


def installer() -> list[str]:
    if importlib.util.find_spec("pip") is not None:
        return [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", *INSTALL]
    return ["uv", "pip", *INSTALL]


def run(command: list[str], folder: Path, site: Path) -> str:
    path = os.pathsep.join(map(str, (site, SOURCE_ROOT, SOURCE_ROOT / "proto")))
    environment = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


def test_the_page_makes_a_package_that_works(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package, site = folder / "package", folder / "site"
    package.mkdir()
    (package / "greeting.py").write_text(block("python", "# greeting.py"))
    (package / "pyproject.toml").write_text(PROJECT + block("toml", "entry-points"))
    run([*installer(), str(site), "."], package, site)

    test = block("python", "from smtp_edge.sinks.testing import ask")
    (folder / "test_greeting.py").write_text(f"from greeting import Greeting\n{test}")
    said = run([sys.executable, "-m", "pytest", "-q", "-o", "asyncio_mode=auto", "test_greeting.py"], folder, site)
    assert "1 passed" in said

    (folder / "message.eml").write_text("Subject: x\n\nhello\n")
    cli = [sys.executable, "-m", "smtp_edge.cli"]
    tried = run([*cli, "sinks", "try", "greeting", "--with", "text=hi", "--eml", "message.eml"], folder, site)
    assert "X-Greeting: hi" in tried

    monkeypatch.setenv("PYTHONPATH", str(site))
    with (
        Keeper() as keeper,
        Cluster(folder / "c", relays=("A",), hosts=(), external={"k": keeper.port}, settings=BINDING) as cluster,
    ):
        cluster.start()
        with smtplib.SMTP(*cluster.relays["relay A"].smtp, timeout=20) as client:
            client.sendmail("sue@example.net", ["ann@example.org"], "Subject: x\r\n\r\nhello\r\n")
            client.sendmail("sue@example.net", ["ann@elsewhere.test"], "X: other\r\n\r\nhello\r\n")
            with pytest.raises(smtplib.SMTPDataError, match="a subject is required here"):
                client.sendmail("sue@example.net", ["ann@example.org"], "X: y\r\n\r\nhello\r\n")
        wait_until(lambda: len(keeper.messages) == 2, 20, "two messages")
    assert sorted(b"X-Greeting: good morning\r\n" in message.data for message in keeper.messages) == [False, True]
