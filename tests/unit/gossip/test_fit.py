"""Own payloads are made to fit the wire: nothing that we publish may be rejected by a receiver."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossip.fit import fit, shard_links
from gossip.linkstate import ClassLoad, Kind, Links, LinkState, Load, NodeInfo
from gossip.repeats import KEYS_MAX, Repeats
from gossip.wire import BODY_BYTES_MAX, CLASSES_MAX, TEXT_MAX
from tests.unit.gossip.worlds import IDENTITIES, link, record_of

NODE = IDENTITIES[0]


def test_an_address_literal_is_a_good_link() -> None:
    links = (link("mx:[IPv6:::1]"), link("mx:[192.0.2.1]"))
    assert shard_links(links) == ([Links(links)], [])


def test_a_link_that_cannot_be_said_is_left_out_with_one_complaint() -> None:
    shards, complaints = shard_links([link("host:a"), link("nonsense"), link("host:b", capacity_mmps=-1)])
    assert shards == [Links((link("host:a"),))]
    assert [text.split(" is not")[0] for text in complaints] == ["link 'nonsense'", "link 'host:b'"]


def test_too_many_classes_of_a_link_are_cut() -> None:
    names = tuple(f"class-{number}" for number in range(300))
    [shard], complaints = shard_links([link(classes=names)])
    assert isinstance(shard, Links)
    assert shard.links[0].classes == names[:CLASSES_MAX]
    assert complaints == ["link 'host:a': only 256 of its classes are advertised"]


def test_shards_are_bounded_in_bytes_too() -> None:
    names = tuple(f"{number:03d}-{'x' * 200}" for number in range(200))
    links = [link(f"host:h{number}", classes=names) for number in range(5)]
    shards, complaints = shard_links(links)
    assert complaints == []
    assert len(shards) == 5
    assert all(len(record_of(NODE, Kind.LINKS, shard).body) < BODY_BYTES_MAX for shard in shards)


def test_no_links_are_one_empty_shard() -> None:
    assert shard_links([]) == ([Links()], [])


def test_the_texts_of_a_node_are_cleaned() -> None:
    info, complaints = fit(NodeInfo("a\nb", "x" * 300, "m:1"))
    assert info == NodeInfo("a?b", "x" * TEXT_MAX, "m:1")
    assert len(complaints) == 2


def test_tags_that_cannot_be_said_are_left_out() -> None:
    info, complaints = fit(NodeInfo("a", "g", "m", tags=("eu", "EU", *(f"t{number:02}" for number in range(20)))))
    assert isinstance(info, NodeInfo)
    assert (info.tags[0], len(info.tags), len(complaints)) == ("eu", 16, 1)
    assert fit(NodeInfo("a", "g", "m", tags=("us", "eu"))) == (NodeInfo("a", "g", "m", tags=("eu", "us")), [])


def test_load_is_bounded_in_count_and_bytes() -> None:
    many = Load(classes=tuple(ClassLoad(f"c{number}", 1, 1) for number in range(300)))
    fitted, complaints = fit(many)
    assert isinstance(fitted, Load)
    assert (len(fitted.classes), complaints) == (256, ["load: only the first 256 classes are advertised"])
    long = Load(classes=tuple(ClassLoad("ä" * 255, 1, 1) for _ in range(256)))
    fitted, complaints = fit(long)
    assert len(record_of(NODE, Kind.LOAD, fitted).body) < BODY_BYTES_MAX
    assert len(complaints) == 1


TEXT = st.text(max_size=300)
NUMBER = st.integers(-(2**70), 2**70)


@given(hop=TEXT, number=NUMBER, classes=st.lists(TEXT, max_size=5), name=TEXT)
def test_whatever_is_fitted_can_be_decoded(hop: str, number: int, classes: list[str], name: str) -> None:
    state: LinkState = link(hop, capacity_mmps=number, samples=number, classes=tuple(classes))
    loads = Load(0, 0, tuple(ClassLoad(item, number, number) for item in classes))
    payloads = [*shard_links([state, link()])[0], fit(NodeInfo(name, name, name))[0], fit(loads)[0]]
    for kind, payload in zip((Kind.LINKS, Kind.NODE, Kind.LOAD), payloads, strict=True):
        assert record_of(NODE, kind, payload).payload == payload


@pytest.mark.parametrize(("later_s", "new"), [(0, False), (59, False), (60, True)])
def test_the_same_is_said_once_a_minute(later_s: float, new: bool) -> None:
    repeats = Repeats()
    assert repeats.is_new("x", 100)
    assert repeats.is_new("y", 100)
    assert repeats.is_new("x", 100 + later_s) is new


def test_what_was_said_is_bounded() -> None:
    repeats = Repeats()
    for number in range(KEYS_MAX + 1):
        assert repeats.is_new(number, 0)
    assert repeats.is_new(0, 0)
    assert not repeats.is_new(KEYS_MAX, 0)
