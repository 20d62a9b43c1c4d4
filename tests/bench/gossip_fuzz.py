"""Coverage-guided fuzzing of gossip: the frame decoder and a machine in the middle of its life (`Ordeal`).

    python3 deploy/run.py bench gossip_fuzz [--minutes 10] [--keep FOLDER]
    python3 deploy/run.py bench gossip_fuzz --replay FILE

The corpus begins with real frames. How a run goes, and what becomes of findings: tests/bench/lab/fuzzing.py.
"""

from __future__ import annotations

import random
from pathlib import Path

from tests.bench.lab.fuzzing import Target, main

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


TARGET = Target(
    name="gossip_fuzz",
    one_input=one_input,
    seeds=seeds,
    instrumented=("gossip",),
    modules=("gossip.machine", "gossip.wire", "tests.unit.gossip.ordeal"),
    bytes_max=BYTES_MAX,
    holds="no exception left the decoder or the machine",
)

if __name__ == "__main__":
    main(TARGET, __doc__)
