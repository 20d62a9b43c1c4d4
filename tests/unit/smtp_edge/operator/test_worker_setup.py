"""`init --workers`, `workers N` and `renew`: what several processes need is issued, and the rest stays as it was."""

from __future__ import annotations

import os
import stat
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from gossip.identity import Identity
from smtp_edge.cli import cli

FREE_ADDRESS = f"127.79.{os.getpid() // 250 % 250}.{os.getpid() % 250 + 1}"
"""A loopback address of this process alone, so that the usual ports are free on it."""


def run(*words: str | Path) -> Result:
    return CliRunner().invoke(cli, [str(word) for word in words])


def init(*words: str | Path) -> Result:
    return run("init", *words, "--address", FREE_ADDRESS)


def workers(folder: Path, count: int, *words: str | Path) -> Result:
    return run("workers", str(count), "--config", folder / "node.toml", *words)


def check(folder: Path) -> Result:
    return run("check-config", "--config", folder / "node.toml")


def identity(folder: Path, number: int = 1) -> Identity:
    end = "" if number == 1 else f"-{number}"
    return Identity.load(folder / "ca.crt", folder / f"node{end}.crt", folder / f"node{end}.key")


@pytest.fixture
def first(tmp_path: Path) -> Path:
    assert init(tmp_path / "mx1").exit_code == 0
    return tmp_path / "mx1"


def test_init_makes_all_that_workers_need(tmp_path: Path) -> None:
    folder = tmp_path / "mx1"
    assert init(folder, "--workers", "3").exit_code == 0
    found = [identity(folder, number) for number in (1, 2, 3)]
    assert len({one.node_id for one in found}) == 3
    assert [one.name for one in found] == ["mx1-1", "mx1-2", "mx1-3"]
    assert stat.S_IMODE((folder / "node-3.key").stat().st_mode) == 0o600
    assert tomllib.loads((folder / "node.toml").read_text())["node"]["workers"] == 3
    names = ", ".join(f"mx1-{number} ({one.node_id})" for number, one in enumerate(found, 1))
    assert check(folder).stdout == f"{folder}/node.toml: good. Nodes {names} of the cluster mesh\n"


def test_ports_of_all_workers_are_kept_apart_from_those_of_other_nodes(tmp_path: Path) -> None:
    for name, count, parent in (("mx1", 12, ()), ("mx2", 2, ("--from", tmp_path / "mx1")), ("mx3", 30, ())):
        assert init(tmp_path / name, "--workers", str(count), *parent).exit_code == 0
    taken: list[int] = []
    for name in ("mx1", "mx2", "mx3"):
        raw = tomllib.loads((tmp_path / name / "node.toml").read_text())
        assert check(tmp_path / name).exit_code == 0
        for section in ("gossip", "mesh"):
            port = int(raw[section]["listen"].rpartition(":")[2])
            taken += range(port, port + raw["node"]["workers"])
        taken.append(int(raw["listener"][0]["listen"].rpartition(":")[2]))
    assert len(taken) == len(set(taken))


def test_a_node_of_one_process_becomes_several_and_keeps_its_identity(first: Path) -> None:
    before = identity(first).node_id
    result = workers(first, 3)
    assert result.exit_code == 0, result.output
    config = first / "node.toml"
    assert result.stdout.splitlines() == [
        f"{first}/node-2.crt is made",
        f"{first}/node-2.key is made",
        f"{first}/node-3.crt is made",
        f"{first}/node-3.key is made",
        f"{config}: workers = 3. Restart the node to go by it; `smtpmesh check-config` first.",
    ]
    assert check(first).exit_code == 0
    assert identity(first).node_id == before
    files = {path.name: path.read_bytes() for path in first.iterdir()}
    assert workers(first, 2).stdout.splitlines()[0].startswith(f"{config}: workers = 2.")
    assert workers(first, 3).exit_code == 0
    assert {path.name: path.read_bytes() for path in first.iterdir()} == files


def test_the_rest_of_the_file_stays_as_it_was(first: Path) -> None:
    config = first / "node.toml"
    before = config.read_text().splitlines()
    assert workers(first, 2).exit_code == 0
    after = config.read_text().splitlines()
    assert [line for line in after if line not in before] == [
        "workers = 2                     # processes; `smtpmesh workers N` issues what more of them need"
    ]
    assert len(after) == len(before)
    config.write_text("\n".join(line for line in before if "workers" not in line) + "\n")
    assert workers(first, 2).exit_code == 0
    assert config.read_text().splitlines()[before.index("[node]") + 1] == "workers = 2"


def test_a_file_that_is_written_in_another_way_is_left_to_its_author(first: Path) -> None:
    config = first / "node.toml"
    text = config.read_text().replace('[node]\nname = "mx1"', 'node.zone = "x"\n[node.more]\n[other]')
    config.write_text(text)
    result = workers(first, 2)
    assert result.exit_code == 1
    assert config.read_text() == text
    assert not (first / "node-2.crt").exists()


def test_certificates_come_from_the_authority_of_the_node(first: Path, tmp_path: Path) -> None:
    second = tmp_path / "mx2"
    assert init(second, "--from", first).exit_code == 0
    result = workers(second, 2)
    assert result.exit_code == 1
    assert result.stderr == (
        "smtpmesh: node-2.crt must be issued, which needs ca.key: name the folder that holds it with --from\n"
    )
    assert init(tmp_path / "other").exit_code == 0
    result = workers(second, 2, "--from", tmp_path / "other")
    assert result.exit_code == 1
    assert "node.crt is of another authority" in result.stderr
    assert not (second / "node-2.crt").exists()
    assert workers(second, 2, "--from", first).exit_code == 0
    assert check(second).exit_code == 0


def test_half_an_identity_is_not_made_whole(first: Path) -> None:
    assert workers(first, 2).exit_code == 0
    (first / "node-2.crt").unlink()
    result = workers(first, 2)
    assert result.exit_code == 1
    assert result.stderr == (
        f"smtpmesh: {first}/node-2.key is there, and node-2.crt is not: put it back, or remove node-2.key as well\n"
    )


def test_renew_renews_the_certificates_of_all_workers(first: Path) -> None:
    assert workers(first, 3).exit_code == 0
    before = [identity(first, number) for number in (1, 2, 3)]
    result = run("renew", first, "--from", first, "--days", "9")
    assert result.exit_code == 0, result.output
    after = [identity(first, number) for number in (1, 2, 3)]
    assert [one.node_id for one in after] == [one.node_id for one in before]
    assert all(one.certificate_pem != other.certificate_pem for one, other in zip(before, after, strict=True))
    assert [line.partition(": node ")[0] for line in result.stdout.splitlines()[:3]] == [
        f"{first}/node.crt",
        f"{first}/node-2.crt",
        f"{first}/node-3.crt",
    ]


def test_renew_renews_none_if_one_cannot_be(first: Path) -> None:
    assert workers(first, 2).exit_code == 0
    (first / "node-2.crt").write_text("no certificate")
    before = (first / "node.crt").read_bytes()
    assert run("renew", first, "--from", first).exit_code == 1
    assert (first / "node.crt").read_bytes() == before
