"""A run of atheris (libFuzzer for Python) as a bench: fetched on demand, a child that fuzzes, figures, findings.

atheris is no dependency of the project: it is fetched into a folder of its own beside the environment's packages. A
finding is a file; `--replay` runs it alone, with the traceback, and needs no atheris.
"""

from __future__ import annotations

import argparse
import importlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ATHERIS = "atheris==3.0.0"
TOOLS = Path(sys.prefix) / "fuzz-tools"
FINDINGS = ("crash-", "timeout-", "oom-", "leak-")


@dataclass(frozen=True, slots=True)
class Target:
    """What is fuzzed."""

    name: str
    """Of the bench."""
    one_input: Callable[[bytes], None]
    """What is to hold for any bytes."""
    seeds: Callable[[Path], int]
    """Writes a corpus to begin with; how many inputs."""
    instrumented: tuple[str, ...]
    """Packages whose branches are counted."""
    modules: tuple[str, ...]
    """Modules to import under instrumentation."""
    bytes_max: int
    holds: str
    """Said when nothing was found."""
    words: tuple[str, ...] = ()
    """A dictionary, if the language has words."""


def main(target: Target, description: str | None) -> None:
    """The bench's command line; ends the process with 1 if something was found."""
    if sys.argv[1:2] == ["--child"]:
        _fuzz(target, sys.argv[2:])
        return
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--replay", type=Path)
    parser.add_argument("--keep", type=Path, help="a folder for corpus and findings, taken up again by the next run")
    arguments = parser.parse_args()
    if arguments.replay is not None:
        target.one_input(arguments.replay.read_bytes())
        print("nothing happened")
        return
    _fetch_atheris()
    folder = arguments.keep or Path(tempfile.mkdtemp(prefix="sm-fuzz-"))
    found = _run(target, folder, arguments.minutes)
    if not found and arguments.keep is None:
        shutil.rmtree(folder)
    sys.exit(found)


def _fuzz(target: Target, arguments: list[str]) -> None:
    """In the child: instrument, and hand over to libFuzzer."""
    sys.path.append(str(TOOLS))
    import atheris

    with atheris.instrument_imports(include=list(target.instrumented)):
        for module in target.modules:
            importlib.import_module(module)
    atheris.Setup([sys.argv[0], *arguments], target.one_input)
    atheris.Fuzz()


def _fetch_atheris() -> None:
    """Install it, once."""
    if (TOOLS / "atheris").exists():
        return
    print(f"installing {ATHERIS} into {TOOLS}", flush=True)
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--target", str(TOOLS), ATHERIS], check=True)


def _run(target: Target, folder: Path, minutes: float) -> int:
    """Start the child, and say what it did."""
    corpus = folder / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    began = target.seeds(corpus)
    flags = [
        f"-max_total_time={int(minutes * 60)}",
        f"-max_len={target.bytes_max}",
        "-timeout=20",
        "-rss_limit_mb=4000",
        "-print_final_stats=1",
        f"-artifact_prefix={folder}/",
    ]
    if target.words:
        dictionary = folder / "words.dict"
        dictionary.write_text("".join(f'"{_escape(word)}"\n' for word in target.words))
        flags.append(f"-dict={dictionary}")
    command = [sys.executable, "-m", f"tests.bench.{target.name}", "--child", *flags, str(corpus)]
    child = subprocess.run(
        command,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
        env={**os.environ, "PYTHONHASHSEED": "0"},
    )
    stats = dict(re.findall(r"^stat::(\w+):\s+(\d+)", child.stderr, re.MULTILINE))
    covered = re.findall(r"cov: (\d+)", child.stderr)
    print(
        f"{minutes:g} minutes: {stats.get('number_of_executed_units', '?')} executions, "
        f"{stats.get('average_exec_per_sec', '?')} a second; "
        f"corpus {began} inputs at the start, {len(list(corpus.iterdir()))} at the end; "
        f"{covered[-1] if covered else '?'} edges covered; most memory {stats.get('peak_rss_mb', '?')} MB"
    )
    findings = sorted(path for path in folder.iterdir() if path.name.startswith(FINDINGS))
    if child.returncode == 0 and not findings:
        print(target.holds)
        return 0
    print("\n".join(child.stderr.splitlines()[-40:]))
    for path in findings:
        print(f"found: {path}\n  python3 deploy/run.py bench {target.name} --replay {path}")
    return 1


def _escape(word: str) -> str:
    """For libFuzzer's dictionaries."""
    return "".join(c if (c.isascii() and c.isalnum()) or c in " :<>=.-@%!" else f"\\x{ord(c):02x}" for c in word)
