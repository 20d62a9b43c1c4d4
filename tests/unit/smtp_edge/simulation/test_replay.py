"""A recorded run is asked again, and every answer is the same."""

from __future__ import annotations

import json

import pytest

from router.recording import Difference, RecordingError, replay
from smtp_edge.simulation import Mesh


@pytest.fixture(scope="module")
def recordings() -> list[list[str]]:
    """5,000 messages through three relays: a host dies and comes back, a relay restarts, replies get lost."""
    with Mesh(seed=5, records=True) as mesh:
        for name, mps in (("s1", 60), ("s2", 120)):
            mesh.host(name, mps)
        mesh.relay("a", exits=["s1", "s2"])
        mesh.relay("b", exits=["s2"])
        mesh.relay("c")
        mesh.way("c", "a", lost_replies=0.02)
        for relay in "abc":
            mesh.load(relay, 50)
        mesh.kill("s2", at=8)
        mesh.restart("s2", at=14)
        mesh.kill("b", at=20)
        mesh.restart("b", at=23)
        mesh.run(38)
        assert mesh.accepted >= 5000
        assert mesh.lost == 0
        return [list(recorder.lines()) for relay in mesh.relays.values() for recorder in relay.recordings]


def test_every_answer_of_five_thousand_messages_is_the_same_again(recordings: list[list[str]]) -> None:
    assert len(recordings) == 4, "b was started twice"
    decisions = 0
    for lines in recordings:
        calls, differences = replay(lines)
        assert differences == []
        assert calls == len(lines) - 1
        decisions += sum(json.loads(line)[0] == "pick" for line in lines[1:])
    assert decisions > 5000


def test_another_past_gives_other_answers(recordings: list[list[str]]) -> None:
    lines = recordings[0]
    origin = json.loads(lines[0])
    origin["value"]["exits"]["value"][0]["value"]["cost"] = 1
    _, differences = replay([json.dumps(origin), *lines[1:]])
    assert differences
    first = next(number for number, line in enumerate(lines) if '"connect-failed"' in line)
    changed = [*lines[:first], lines[first].replace('"connect-failed"', '"accepted"'), *lines[first + 1 :]]
    _, differences = replay(changed)
    assert isinstance(differences[0], Difference)
    assert differences[0].line > first


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("{", "line 2: "),
        ('["rm", {"$": "tuple", "value": []}, {"$": "dict", "value": []}, ""]', "line 2: there is no call 'rm'"),
        ('["apply", {"$": "Popen", "value": {}}, {"$": "dict", "value": []}, ""]', "line 2: 'Popen'"),
    ],
)
def test_what_is_no_recording_is_refused(recordings: list[list[str]], line: str, text: str) -> None:
    with pytest.raises(RecordingError, match=text):
        replay([recordings[0][0], line])
    with pytest.raises(RecordingError, match="line 1"):
        replay(["1"])
