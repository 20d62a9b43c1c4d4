"""The demo: a real mesh on loopback, broken on purpose, and an account of every message at the end.

    smart_host   an SMTP server of limited rate that writes one line per message before its 250 (own process)
    cluster      folders, processes and ports of relays and smart hosts: start, wait until ready, kill -9, restart
    submit       clients by smtplib that count as accepted only what was answered 250
    watch        what the relays say: routing tables by the admin call, attempts and transitions by their logs
    ledger       accepted against delivered: lost, doubled and why, shares, time to reroute (pure)
    show         the timeline that a newcomer sees
    replication  the other scene: a table on two relays that are equal in the end; `ways` between them that can be cut

`cluster`, `submit`, `smart_host` and `ledger` also carry the end-to-end tests. Importing this package is light.
"""

from __future__ import annotations

from pathlib import Path


def run_demo(
    *,
    json_output: bool = False,
    keep: bool = False,
    directory: Path | None = None,
    seconds_scale: float = 1.0,
    scene: str = "mail",
) -> int:
    """Run a scene; 0 if the ledger balances, else 1. `keep` leaves the cluster up until Ctrl-C."""
    if scene == "replication":
        from smtp_edge.demo import replication

        return replication.run(json_output=json_output, keep=keep, directory=directory)
    from smtp_edge.demo.show import run

    return run(json_output=json_output, keep=keep, directory=directory, seconds_scale=seconds_scale)
