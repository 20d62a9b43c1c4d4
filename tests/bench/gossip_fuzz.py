"""Coverage-guided fuzzing of gossip: the frame decoder and a machine in the middle of its life (`Ordeal`).

    python3 deploy/run.py bench gossip_fuzz [--minutes 10] [--keep FOLDER]
    python3 deploy/run.py bench gossip_fuzz --replay FILE

atheris (libFuzzer for Python) is no dependency of the project: it is fetched into a folder of its own beside the
environment's packages. The corpus begins with real frames. A finding is a file; `--replay` runs it alone, with the
traceback, and needs no atheris.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ATHERIS = "atheris==3.0.0"
TOOLS = Path(sys.prefix) / "fuzz-tools"
BYTES_MAX = 4096
DECODER = 0
"""First byte of an input: below 128 the rest is a frame's bytes, else the life of a machine."""


def one_input(data: bytes) -> None:
    """What is to hold for any bytes."""
    from google.protobuf.message import DecodeError

    from gossip.wire import WireError, decode_frame, decode_record, encode_frame
    from smtpmesh.gossip.v1 import gossip_pb2 as pb
    from tests.unit.gossip.ordeal import Ordeal

    if not data:
        return
    if data[0] >= 128:
        Ordeal().run(data[1:])
        return
    try:
        frame = decode_frame(pb.Frame.FromString(data[1:]))
        if frame is not None:
            encode_frame(frame)
    except (DecodeError, WireError):
        pass
    try:
        decode_record(data[1:], b"")
    except WireError:
        pass


def seeds(folder: Path) -> int:
    """A corpus to begin with: frames that machines really send, and random lives."""
    from tests.unit.gossip.ordeal import Ordeal

    rng, number = random.Random(1), 0
    ordeal = Ordeal()
    for _ in range(20):
        ordeal.run(rng.randbytes(800))
    for message in ordeal.recent:
        (folder / f"frame-{number}").write_bytes(bytes([DECODER]) + message.SerializeToString()[:BYTES_MAX])
        number += 1
    for _ in range(50):
        (folder / f"life-{number}").write_bytes(b"\xff" + rng.randbytes(rng.randrange(20, 1500)))
        number += 1
    return number


def fuzz(arguments: list[str]) -> None:
    """In the child: instrument, and hand over to libFuzzer."""
    sys.path.append(str(TOOLS))
    import atheris

    with atheris.instrument_imports(include=["gossip"]):
        import gossip.machine
        import gossip.wire  # noqa: F401
        import tests.unit.gossip.ordeal  # noqa: F401
    atheris.Setup([sys.argv[0], *arguments], one_input)
    atheris.Fuzz()


def fetch_atheris() -> None:
    """Install it, once."""
    if (TOOLS / "atheris").exists():
        return
    print(f"installing {ATHERIS} into {TOOLS}", flush=True)
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--target", str(TOOLS), ATHERIS], check=True)


def main() -> None:
    """See the module."""
    if sys.argv[1:2] == ["--child"]:
        fuzz(sys.argv[2:])
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--replay", type=Path)
    parser.add_argument("--keep", type=Path, help="a folder for corpus and findings, taken up again by the next run")
    arguments = parser.parse_args()
    if arguments.replay is not None:
        one_input(arguments.replay.read_bytes())
        print("nothing happened")
        return
    fetch_atheris()
    folder = arguments.keep or Path(tempfile.mkdtemp(prefix="sm-fuzz-"))
    found = run(folder, arguments.minutes)
    if not found and arguments.keep is None:
        shutil.rmtree(folder)
    sys.exit(found)


def run(folder: Path, minutes: float) -> int:
    """Start the child, and say what it did."""
    corpus = folder / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    began = seeds(corpus)
    flags = [
        f"-max_total_time={int(minutes * 60)}",
        f"-max_len={BYTES_MAX}",
        "-timeout=20",
        "-rss_limit_mb=4000",
        "-print_final_stats=1",
        f"-artifact_prefix={folder}/",
        str(corpus),
    ]
    words = [sys.executable, "-m", "tests.bench.gossip_fuzz", "--child", *flags]
    child = subprocess.run(
        words, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONHASHSEED": "0"}
    )
    stats = dict(re.findall(r"^stat::(\w+):\s+(\d+)", child.stderr, re.MULTILINE))
    covered = re.findall(r"cov: (\d+)", child.stderr)
    print(
        f"{minutes:g} minutes: {stats.get('number_of_executed_units', '?')} executions, "
        f"{stats.get('average_exec_per_sec', '?')} a second; "
        f"corpus {began} inputs at the start, {len(list(corpus.iterdir()))} at the end; "
        f"{covered[-1] if covered else '?'} edges covered; most memory {stats.get('peak_rss_mb', '?')} MB"
    )
    findings = sorted(
        path for path in folder.iterdir() if path.name.startswith(("crash-", "timeout-", "oom-", "leak-"))
    )
    if child.returncode == 0 and not findings:
        print("no exception left the decoder or the machine")
        return 0
    print("\n".join(child.stderr.splitlines()[-40:]))
    for path in findings:
        print(f"found: {path}\n  python3 deploy/run.py bench gossip_fuzz --replay {path}")
    return 1


if __name__ == "__main__":
    main()
