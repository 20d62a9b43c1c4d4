"""smtpmesh itself as a contender: one node, one smart host, everything else as it comes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.bench.relays.contender import HOSTNAME, Contender, Place, RelayError

ROOT = Path(__file__).resolve().parents[3]
COMMAND = (sys.executable, "-m", "smtp_edge.cli")
CONFIGURATION = """\
[node]
name = "n"
hostname = "{hostname}"

[[listener]]
listen = "127.0.0.1:{port}"
allow_networks = ["127.0.0.0/8"]
{tls}

[[smart_host]]
name = "sink"
host = "127.0.0.1"
port = {sink}
tls = "none"

[[route]]
name = "default"
domains = ["*"]
via = ["sink"]
{more}
"""


def build(workers: int = 0, more: str = "", name: str = "smtpmesh") -> Contender:
    """`workers`: processes; 0 = as it comes, which is one. `more`: TOML that is appended."""

    def prepare(place: Place) -> list[str]:
        return prepare_node(place, workers=workers, more=more)

    return Contender(name, lambda: "", prepare, listeners=max(1, workers))


def prepare_node(place: Place, *, workers: int = 0, more: str = "") -> list[str]:
    """Make the node's folder; the command that runs it."""
    folder = place.folder / "n"
    init(folder, "n")
    tls = f'tls = "starttls"\ncertificate = "{place.pem}"' if place.pem else ""
    values = {"tls": tls, "hostname": HOSTNAME, "port": place.port, "sink": place.sink, "more": more}
    (folder / "node.toml").write_text(CONFIGURATION.format(**values))
    if workers > 1:
        call("workers", str(workers), "--config", str(folder / "node.toml"))
    return run_command(folder)


def init(folder: Path, name: str, *more: str) -> None:
    """Key, certificate, a node.toml to be replaced."""
    call("init", str(folder), "--name", name, *more)


def call(*words: str) -> None:
    """A command of ours that must succeed. RelayError with its last line."""
    done = subprocess.run([*COMMAND, *words], check=False, capture_output=True, text=True, env=environment())
    if done.returncode != 0:
        raise RelayError(f"smtpmesh {words[0]}: {done.stderr.strip().rpartition(chr(10))[2]}")


def run_command(folder: Path) -> list[str]:
    """That runs the node of a folder."""
    return [*COMMAND, "run", "--config", str(folder / "node.toml")]


def environment() -> dict[str, str]:
    """In which contenders run: the checkout's sources before installed ones, from whatever folder."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "proto"), *filter(None, [os.environ.get("PYTHONPATH")])])
    return dict(os.environ, PYTHONPATH=path)
