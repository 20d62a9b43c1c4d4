"""Two configurations are compared by the names of settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from smtp_edge.changes import Difference, compare, find_files, hold_back
from smtp_edge.routes import find_other_machines
from smtp_edge.settings import Settings

HOSTS = [{"name": "a", "host": "192.0.2.1"}, {"name": "b", "host": "192.0.2.2"}]
ROUTES = [{"name": "one", "domains": ["one.test"], "via": ["a"]}, {"name": "rest", "via": ["b"]}]


def build(**sections: Any) -> Settings:
    given = {"node": {"name": "mx1"}, "smart_host": HOSTS, "route": ROUTES, **sections}
    return Settings.model_validate(given)


@pytest.mark.parametrize(
    ("sections", "live", "restart"),
    [
        ({}, (), ()),
        ({"limits": {"hops_max": 20}}, ("limits.hops_max",), ()),
        ({"node": {"name": "mx1", "hostname": "mx1.test"}}, ("node.hostname",), ()),
        ({"node": {"name": "mx2", "data_dir": "else"}}, (), ("node.name", "node.data_dir")),
        ({"metrics": {"listen": "127.0.0.1:1"}, "log": {"level": "debug"}}, ("log.level",), ("metrics.listen",)),
        ({"mesh": {"listen": "127.0.0.1:1", "transit": False}}, ("mesh.transit",), ("mesh.listen",)),
        ({"access": [{"action": "reject", "helo": ["x"]}]}, ("access",), ()),
        ({"sink": [{"use": "x:Y"}]}, ("sink",), ()),
        ({"smart_host": [{**HOSTS[0], "port": 26}, HOSTS[1]]}, ("smart_host[a].port",), ()),
        (
            {"smart_host": [{"name": "c", "host": "192.0.2.3"}, HOSTS[0]]},
            ("smart_host[c] (new)", "smart_host[b] (gone)"),
            (),
        ),
        ({"route": ROUTES[::-1]}, ("route (order)",), ()),
        ({"smart_host": HOSTS[::-1]}, (), ()),
        ({"listener": [{"name": "smtp", "tls": "starttls"}]}, ("listener[smtp].tls",), ()),
        ({"listener": []}, ("listener[smtp] (gone)",), ()),
    ],
    ids=str,
)
def test_a_difference_has_the_name_of_its_setting(
    sections: dict[str, Any], live: tuple[str, ...], restart: tuple[str, ...]
) -> None:
    assert compare(build(), build(**sections)) == Difference(live, restart)


def test_what_needs_a_restart_is_held_back_and_told_again_the_next_time() -> None:
    before = build()
    after = build(
        node={"name": "mx2", "zone": "z"}, mesh={"listen": "127.0.0.1:1", "transit": False}, router={"window_max": 3}
    )
    held = hold_back(before, after)
    assert compare(before, held) == Difference(("node.zone", "mesh.transit"), ())
    assert compare(held, after) == Difference((), ("node.name", "mesh.listen", "router.window_max"))


def test_every_file_is_found_under_the_name_of_its_setting() -> None:
    settings = build(
        listener=[{"name": "in", "certificate": "c", "key": "k", "auth_users": "u"}],
        smart_host=[{"name": "a", "host": "192.0.2.1", "password_file": "p"}],
        tls=[{"domains": ["x.test"], "level": "verified", "ca": "partner"}],
    )
    assert find_files(settings) == {
        "cluster.revocations": Path("revocations"),
        "cluster.ca": Path("ca.crt"),
        "cluster.certificate": Path("node.crt"),
        "cluster.key": Path("node.key"),
        "listener[in].certificate": Path("c"),
        "listener[in].key": Path("k"),
        "listener[in].auth_users": Path("u"),
        "smart_host[a].password_file": Path("p"),
        "tls[0].ca": Path("partner"),
    }


def test_a_host_elsewhere_is_another_machine_and_one_with_other_limits_is_not() -> None:
    moved = build(smart_host=[{**HOSTS[0], "port": 26}, {**HOSTS[1], "cost": 5, "connections_max": 3}])
    assert [hop.id for hop in find_other_machines(build(), moved)] == ["host:a"]
