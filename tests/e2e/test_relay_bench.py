"""`bench relay` does what its tables say: mail goes through real relays, and ratios are those of the same round."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from smtp_edge.demo.cluster import SOURCE_ROOT
from tests.bench.relays.load import Mix, parse_mix
from tests.bench.relays.scores import Scores, build_bars, find_failures
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
        ("512k1x2", Mix(524288, single=True, recipients=2)),
    ],
)
def test_a_mix_is_named_as_it_is_parsed(text: str, mix: Mix) -> None:
    assert (parse_mix(text), mix.name) == (mix, text)


@pytest.mark.parametrize("text", ["", "4", "0k", "4kx", "k1"])
def test_what_is_no_mix_is_answered_with_a_sentence(text: str) -> None:
    with pytest.raises(ValueError, match=r"is no mix: write 4k"):
        parse_mix(text)


@pytest.mark.peer("smtp-source", "unshare")
def test_a_short_round_in_memory_counts(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root, for namespaces")
    kept = tmp_path / "kept"
    command = [sys.executable, "-m", "tests.bench.relay", "--keep", str(kept), "--relays", "smtpmesh", "--no-syncs"]
    command += ["--mix", "4k", "--queue", "memory", "--rounds", "1", "--seconds", "0.5", "--quiet", "0"]
    done = subprocess.run(command, cwd=SOURCE_ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    limit, own = (json.loads(line) for line in kept.read_text().splitlines())
    assert (limit["relay"], own["relay"]) == ("no relay", "smtpmesh")
    assert own["arrived"] == own["sent"] >= 300
    assert own["cpu_ms"] > 0
