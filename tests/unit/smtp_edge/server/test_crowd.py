"""Counts and rates of clients, and who counts as one."""

from __future__ import annotations

import pytest

from smtp_edge.networks import ClientKeys, Networks
from smtp_edge.server.crowd import BUCKETS_MAX, Buckets, Crowd, Event
from smtp_edge.server.pressure import Memory
from smtp_edge.setting_kinds import parse_network
from smtp_edge.settings_inbound import LimitsSettings


def build_crowd(connections_max: int = 100, per_client: int = 2, **limits: object) -> Crowd:
    settings = LimitsSettings.model_validate(limits)
    return Crowd(settings, connections_max=connections_max, connections_per_client_max=per_client)


@pytest.mark.parametrize(
    ("address", "key"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::1%eth0", "2001:db8:1:2::/64"),
        ("local", "local"),
    ],
)
def test_an_ipv6_customer_is_one_client(address: str, key: str) -> None:
    assert ClientKeys(32, 64).key(address) == key


def test_shorter_prefixes_make_larger_clients() -> None:
    assert ClientKeys(24, 48).key("192.0.2.7") == "192.0.2.0/24"
    assert ClientKeys(24, 48).key("2001:db8:1:2::1") == "2001:db8:1::/48"


def test_networks_remember_their_answers_and_forget_them_in_time() -> None:
    networks = Networks([parse_network("10.0.0.0/8"), parse_network("fd00::/8")])
    assert [networks.hold(address) for address in ("10.1.1.1", "10.1.1.1", "fd00::1", "11.1.1.1", "nonsense", "")] == [
        True, True, True, False, False, False,
    ]  # fmt: skip
    for number in range(30_000):
        networks.hold(f"192.0.{number >> 8}.{number & 255}")
    assert len(networks._answers) <= 10_000
    assert not Networks([])


def test_a_client_has_no_more_than_its_connections() -> None:
    crowd = build_crowd()
    entered = [crowd.enter(f"2001:db8::{n}", 0) for n in range(3)]
    assert [reply and str(reply)[:9] for _, reply in entered] == [None, None, "421 4.7.0"]
    assert crowd.enter("2001:db8:0:1::1", 0)[1] is None
    crowd.leave(entered[0][0])
    crowd.leave(entered[2][0])
    assert crowd.enter("2001:db8::9", 0)[1] is None
    assert crowd.open_count == 3


def test_all_clients_together_have_no_more_than_the_listener_takes() -> None:
    crowd = build_crowd(connections_max=2)
    replies = [crowd.enter(f"192.0.2.{n}", 0)[1] for n in range(3)]
    assert [reply and str(reply)[:9] for reply in replies] == [None, None, "421 4.3.2"]


def test_exempt_clients_are_only_bound_by_the_whole() -> None:
    crowd = build_crowd(connections_max=3, exempt_networks=["192.0.2.0/24"], connections_per_minute=1)
    replies = [crowd.enter("192.0.2.1", 0)[1] for _ in range(4)]
    assert [reply and str(reply)[:9] for reply in replies] == [None, None, None, "421 4.3.2"]


def test_rates_allow_a_burst_and_then_the_rate() -> None:
    crowd = build_crowd(messages_per_minute=3)
    said = [crowd.note(Event.MESSAGE, "192.0.2.1", 0) for _ in range(4)]
    assert [reply and reply.code for reply in said] == [None, None, None, 450]
    assert crowd.note(Event.MESSAGE, "192.0.2.2", 0) is None
    assert crowd.note(Event.MESSAGE, "192.0.2.1", 19.9) is not None
    assert crowd.note(Event.MESSAGE, "192.0.2.1", 20.1) is None
    assert crowd.note(Event.MESSAGE, "192.0.2.1", 20.2) is not None
    assert crowd.note(Event.RECIPIENT, "192.0.2.1", 0) is None


def test_strangers_do_not_grow_the_memory() -> None:
    buckets = Buckets(1, 60)
    for number in range(BUCKETS_MAX + 10):
        assert buckets.take(str(number), 0)
    assert len(buckets._levels) == BUCKETS_MAX
    assert not buckets.take(str(BUCKETS_MAX), 0)
    assert buckets.take("0", 0)  # forgotten: in its favour


def test_other_limits_keep_who_is_there_counted() -> None:
    crowd = build_crowd()
    key, _ = crowd.enter("192.0.2.1", 0)
    crowd.configure(LimitsSettings(client_prefix_v4=24), connections_max=1, connections_per_client_max=1)
    assert crowd.enter("192.0.2.2", 0)[1] is not None
    crowd.leave(key)
    assert crowd.open_count == 1


def test_memory_is_given_up_to_nine_tenths_and_counts_what_is_unread() -> None:
    memory = Memory(1000)
    assert memory.take(900)
    assert not memory.take(1)
    assert memory.high
    assert not memory.full
    memory.give_back(900)
    memory.unread_bytes[1] = 1000
    assert memory.full
    assert memory.take(1)  # what is unread is short-lived; mail that arrives makes room in it


def test_large_mail_has_a_quarter_of_the_memory_and_counts_as_any_other() -> None:
    memory = Memory(1000)
    assert memory.take_large(250)
    assert not memory.take_large(1)
    assert memory.take(650)
    memory.give_back_large(250)
    assert (memory.kept_bytes, memory.large_bytes) == (650, 0)
    assert memory.take(250)
    assert not memory.take_large(1), "there is a share, and no room"
