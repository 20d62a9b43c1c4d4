"""The demo itself, as a newcomer runs it: it ends by itself, within its time, and its ledger balances."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from smtp_edge.demo.cluster import SOURCE_ROOT

TIME_MAX_S = 60.0
REROUTE_MAX_S = 1.0
SHARES = {"smart host A": 1 / 7, "smart host B": 2 / 7, "smart host C": 4 / 7}
SHARE_OFF_MAX = 0.12


def test_the_demo_loses_nothing_and_says_so_in_json(folder: Path) -> None:
    environment = dict(os.environ, PYTHONPATH=f"{SOURCE_ROOT}{os.pathsep}{SOURCE_ROOT / 'proto'}")
    program = "from pathlib import Path; import sys; from smtp_edge.demo import run_demo; "
    program += "sys.exit(run_demo(json_output=True, directory=Path(sys.argv[1])))"
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", program, str(folder / "d")],
        env=environment,
        capture_output=True,
        text=True,
        timeout=TIME_MAX_S * 2,
        check=False,
    )
    took_s = time.monotonic() - began
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    ledger = json.loads(done.stdout)
    assert ledger["balanced"]
    assert (ledger["lost"], ledger["changed"], ledger["doubled_in_mesh"]) == ([], [], 0)
    assert ledger["submitted"] == ledger["accepted"] == ledger["delivered"]
    assert all(double["reason"] for double in ledger["doubled"])
    (reroute,) = ledger["reroutes"]
    assert (reroute["last_use_s"] or 0.0) <= REROUTE_MAX_S
    for host, share in SHARES.items():
        assert abs(ledger["hosts"][host]["share"] - share) <= SHARE_OFF_MAX, ledger["hosts"]
    assert took_s <= TIME_MAX_S
