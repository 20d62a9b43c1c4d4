"""`bench relay` and its kin do what their tables say: real mail, ratios of one round, accounts that tell faults."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from smtp_edge.demo.cluster import SOURCE_ROOT, find_port
from smtp_edge.demo.ledger import Kill
from tests.bench.relays.accounting import RELAY, Sent, classes_of_doubles, draw_up, receiving, sending
from tests.bench.relays.load import Mix, Pulse, parse_mix
from tests.bench.relays.scores import Scores, build_bars, find_failures
from tests.bench.relays.sender import Plan
from tests.bench.relays.trial import Score


def scored(relay: str, rate: float, cpu_ms: float, round: int, *, yardstick: bool = False, lost: int = 0) -> Score:
    return Score(relay, "4k", "disk", sent=100, arrived=100 - lost, rate=rate, cpu_ms=cpu_ms, round=round,
                 yardstick=yardstick)  # fmt: skip


def test_ratios_are_to_the_best_yardstick_of_the_same_round() -> None:
    scores = Scores(
        [
            scored("smtpmesh", 600, 0.5, 0),
            scored("postfix", 100, 2.0, 0, yardstick=True),
            scored("postfix-tuned", 200, 4.0, 0, yardstick=True),
            scored("smtpmesh", 800, 0.5, 1),
            scored("postfix", 400, 1.0, 1, yardstick=True),
            scored("smtpmesh", 900, 0.5, 2),
            scored("postfix", 9000, 0.1, 2, yardstick=True, lost=1),
        ]
    )
    ratios = scores.ratios(("4k", "disk"), "smtpmesh")
    assert (ratios.rate, ratios.cpu) == ([3.0, 2.0], [0.25, 0.5])
    assert find_failures(scores) == ["postfix 4k disk: 99 of 100 arrived"]
    assert [row[1:] for row in build_bars(scores)] == [
        [">= 5 x", "2.50 (2.00-3.00) x MISSED"],
        ["<= 0.2 x", "0.38 (0.25-0.50) x MISSED"],
    ]


@pytest.mark.parametrize(
    ("text", "mix"),
    [
        ("4k", Mix(4096)),
        ("4k1", Mix(4096, single=True)),
        ("50kx5", Mix(51200, recipients=5)),
        ("4k1+tls", Mix(4096, single=True, tls=True)),
        ("512k1x2", Mix(524288, single=True, recipients=2)),
    ],
)
def test_a_mix_is_named_as_it_is_parsed(text: str, mix: Mix) -> None:
    assert (parse_mix(text), mix.name) == (mix, text)


@pytest.mark.parametrize("text", ["", "4", "0k", "4kx", "k1"])
def test_what_is_no_mix_is_answered_with_a_sentence(text: str) -> None:
    with pytest.raises(ValueError, match=r"is no mix: write 4k"):
        parse_mix(text)


def test_the_middle_of_a_run_is_without_its_start_and_its_tail() -> None:
    pulse = Pulse([(0.0, 5), (3.0, 5), (4.0, 25), (5.0, 55), (6.0, 85), (20.0, 105)])
    assert pulse.middle_rate() == 30.0


def test_the_account_tells_loss_and_explained_doubles_from_unexplained_ones() -> None:
    sent = [Sent(1, 250, 0.0, 0.1), Sent(2, 250, 0.0, 0.1), Sent(3, 250, 0.0, 0.1), Sent(4, 0, 9.0, 10.0)]
    received = [(1, 9.9), (1, 11.0), (2, 3.0), (2, 11.0), (-1, 5.0)]
    ledger = draw_up(sent, received, [Kill(RELAY, 10.0, 10.8)])
    assert (ledger.accepted, ledger.lost, ledger.unanswered, ledger.strangers) == (3, ("3",), 1, ("-1",))
    assert classes_of_doubles(ledger) == {"the 250 was not yet recorded": 1, "unexplained": 1}


@pytest.mark.parametrize(
    "plan",
    [Plan(0, count=300), Plan(0, count=60, single=True, recipients=5, sessions=3), Plan(0, count=200, rate=1000)],
    ids=["fast", "single", "paced"],
)
def test_the_sender_notes_what_the_receiver_notes(tmp_path: Path, plan: Plan) -> None:
    port = find_port(set())
    plan = dataclasses.replace(plan, port=port, seconds=30)
    with receiving(tmp_path / "received", port) as receiver, sending(plan, tmp_path / "sent") as sender:
        assert sender.wait()["begun"] == plan.count
        assert {(one.number, one.code) for one in sender.sent()} == {(number, 250) for number in range(plan.count)}
        assert sorted(number for number, _ in receiver.received()) == list(range(plan.count))


def run_bench(name: str, *words: str, allowed: int = 0) -> str:
    """Its output. Skips without root. `allowed`: 1 if a bar may be missed."""
    if os.geteuid() != 0:
        pytest.skip("needs root, for namespaces")
    command = [sys.executable, "-m", f"tests.bench.{name}", *words]
    done = subprocess.run(command, cwd=SOURCE_ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode <= allowed, done.stdout + done.stderr
    return done.stdout


@pytest.mark.peer("smtp-source", "unshare")
def test_a_short_round_in_memory_counts(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    words = ["--mix", "4k", "--queue", "memory", "--rounds", "1", "--seconds", "0.5", "--quiet", "0", "--no-syncs"]
    run_bench("relay", *words, "--relays", "smtpmesh", "--keep", str(kept))
    limit, own = (json.loads(line) for line in kept.read_text().splitlines())
    assert (limit["relay"], own["relay"]) == ("no relay", "smtpmesh")
    assert own["arrived"] == own["sent"] >= 300
    assert own["cpu_ms"] > 0


@pytest.mark.peer("unshare")
def test_a_relay_killed_at_full_speed_loses_nothing() -> None:
    assert "3 of 3 met" in run_bench("relay_kill", "--kills", "1", "--between", "0.1", "--queue", "memory")


@pytest.mark.peer("unshare")
def test_a_dead_next_hop_costs_nothing_but_time() -> None:
    assert "4 of 4 met" in run_bench("relay_dead_sink", "--messages", "1000", "--queue", "memory")


@pytest.mark.peer("unshare")
def test_a_steady_load_is_accounted_for() -> None:
    words = ["--minutes", "0.05", "--rate", "200", "--share", "0.5", "--queue", "memory"]
    shown = run_bench("relay_soak", *words, allowed=1)  # a node that has just begun may still grow
    assert re.search(r"^lost of [1-9]\d* that were answered 250 +0 +0$", shown, re.MULTILINE), shown
    assert re.search(r"^doubled +0 +0$", shown, re.MULTILINE), shown


@pytest.mark.peer("smtp-source", "unshare", "nsenter")
def test_mail_goes_through_two_relays_of_which_the_first_has_no_exit() -> None:
    words = ["--hops", "2", "--rounds", "1", "--seconds", "0.5", "--queue", "memory"]
    assert re.search(r"^4k +2 +1 +\d+ ", run_bench("relay_mesh", *words), re.MULTILINE)


@pytest.mark.peer("smtp-source", "unshare")
def test_a_profile_says_what_a_message_calls() -> None:
    shown = run_bench("relay_profile", "--count", "1000", "--top", "40")
    assert re.search(r"^event loop +\d+ +\d+ ", shown, re.MULTILINE)
    assert re.search(r"^smtp_edge/acceptor\.py +[1-9]\d*\.\d ", shown, re.MULTILINE)
    assert re.search(r"^_build \(smtp_edge/acceptor\.py:\d+\) +1\.0", shown, re.MULTILINE), "once for each message"
