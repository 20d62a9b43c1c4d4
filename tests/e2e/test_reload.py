"""A relay reads its configuration again under traffic: no session ends, no mail is lost; what is wrong stays out."""

from __future__ import annotations

import json
import re
import shutil
import signal
import smtplib
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from gossip.identity import Authority, replace_file
from smtp_edge.auth.users import hash_password
from smtp_edge.demo.cluster import Cluster, HostPlan, Relay, find_port
from smtp_edge.demo.ledger import to_text
from smtp_edge.demo.submit import Connections, Submitter
from tests.e2e.scene import account, admin_calls, drain, events, wait_until
from tests.e2e.test_drain import smtpmesh

STATIC = "tests.unit.smtp_edge.dispatch.test_bindings:Static"


class Watchful(Submitter):
    """Notes whatever a client is told but 250."""

    troubles: list[str]

    def _offer(self, connections: Connections, relay: str, message: bytes) -> str:
        outcome = super()._offer(connections, relay, message)
        if outcome != "accepted":
            self.troubles.append(outcome)
        return outcome


def edit(relay: Relay, *changes: tuple[str, str]) -> None:
    """Replace in the configuration, or append to it (before: empty)."""
    text = relay.config.read_text()
    for before, after in changes:
        assert before in text
        text = text.replace(before, after) if before else text + after
    relay.config.write_text(text)


def reload(relay: Relay) -> dict[str, object]:
    done = smtpmesh(relay, "reload", "--json")
    assert done.returncode == 0, done.stderr
    found: dict[str, object] = json.loads(done.stdout)
    return found


def hang_up(relay: Relay) -> None:
    assert relay.server.process is not None
    relay.server.process.send_signal(signal.SIGHUP)


def dial(port: int) -> smtplib.SMTP:
    return smtplib.SMTP("127.0.0.1", port, local_hostname="client.test", timeout=20)


@pytest.fixture
def cluster(folder: Path) -> Iterator[Cluster]:
    with Cluster(folder, relays=("A",), hosts=(HostPlan("A"), HostPlan("B"))) as cluster:
        yield cluster


def test_everything_changes_under_traffic_and_nothing_is_dropped_or_lost(cluster: Cluster) -> None:
    relay, port = cluster.relays["relay A"], find_port(set(cluster.relays["relay A"].ports.values()))
    edit(relay, ('via = ["a", "b"]', 'via = ["a"]'))
    cluster.start()
    calls = admin_calls(cluster)
    load = Watchful(cluster.submission_targets(), rate_mps=80, thread_count=8)
    load.troubles = []
    load.start()
    wait_until(lambda: load.counts().accepted >= 40, 20, "mail flows")
    with dial(relay.ports["smtp"]) as old:
        assert old.ehlo()[0] == 250
        edit(
            relay,
            ('name = "default"\ndomains', 'name = "all"\ndomains'),
            ('via = ["a"]', 'via = ["b"]'),
            ("allow_networks =", "recipients_max = 7\nallow_networks ="),
            ("[admin]", f'[[listener]]\nname = "second"\nlisten = "127.0.0.1:{port}"\n\n[admin]'),
            ('format = "json"', 'format = "json"\nlevel = "debug"\n\n[metrics]\nlisten = "127.0.0.1:1"'),
            ("", '\n[[access]]\nsender = ["spam.test"]\naction = "reject"\n\n[queue]\nentries_max = 5000\n'),
        )
        answer = reload(relay)
        assert answer["applied"] == [
            "listener[smtp].recipients_max",
            "listener[second] (new)",
            "access",
            "route[all] (new)",
            "route[default] (gone)",
            "queue.entries_max",
            "log.level",
        ]
        assert answer["needs_restart"] == ["metrics.listen"]
        assert int(str(answer["sessions_before"])) >= 1
        accepted = load.counts().accepted
        wait_until(lambda: load.counts().accepted >= accepted + 80, 20, "mail flows on")
        with dial(port) as second, dial(relay.ports["smtp"]) as new:
            assert b"LIMITS RCPTMAX=7" in new.ehlo()[1]
            assert new.mail("x@spam.test") == (550, b"5.7.1 access denied")
            second.ehlo()
            second.mail("x@y.test")
            assert second.rcpt("reader@example.test")[0] == 550  # it allows no networks
        assert old.mail("x@spam.test")[0] == 250
        assert old.rcpt("reader@example.test")[0] == 250  # by the rules that it began with
        old.rset()
    edit(relay, (f'[[listener]]\nname = "second"\nlisten = "127.0.0.1:{port}"\n\n', ""))
    assert reload(relay)["applied"] == ["listener[second] (gone)"]
    with pytest.raises(ConnectionRefusedError):
        dial(port)
    drain(cluster, calls, load)
    assert load.troubles == []
    ledger = account(cluster, load)
    assert ledger.balanced, to_text(ledger)
    assert ledger.doubled == ()
    assert {line["next_hop"] for line in events(relay.server.log, "route.change")} >= {"host:b"}
    assert len(cluster.hosts["smart host B"].ledger.read_text().splitlines()) > 40
    assert events(relay.server.log, "node.reload_failed") == []


def test_mail_that_waits_under_a_route_that_is_gone_goes_the_new_way(cluster: Cluster) -> None:
    relay = cluster.relays["relay A"]
    dead = find_port(set(relay.ports.values()))
    edit(
        relay,
        ("[[route]]", '[[route]]\nname = "dark"\ndomains = ["dark.test"]\nvia = ["nowhere"]\n\n[[route]]'),
        ("", f'\n[[smart_host]]\nname = "nowhere"\nhost = "127.0.0.1"\nport = {dead}\ntls = "none"\n'),
    )
    cluster.start()
    calls = admin_calls(cluster)
    load = Submitter(cluster.submission_targets(), rate_mps=200, count_max=40, thread_count=4, recipient="x@dark.test")
    load.start()
    assert load.join(20)
    assert calls.waiting("relay A") == 40
    text = relay.config.read_text()
    text = re.sub(r'\[\[route\]\]\nname = "dark".*?\n\n', "", text, flags=re.DOTALL)
    text = re.sub(r'\n\[\[smart_host\]\]\nname = "nowhere".*', "", text, flags=re.DOTALL)
    relay.config.write_text(text)
    assert reload(relay)["applied"] == ["smart_host[nowhere] (gone)", "route[dark] (gone)"]
    drain(cluster, calls, load)
    ledger = account(cluster, load)
    assert ledger.balanced, to_text(ledger)
    assert ledger.doubled == ()


def test_a_wrong_configuration_is_kept_out_and_every_fault_is_a_sentence(cluster: Cluster) -> None:
    relay = cluster.relays["relay A"]
    cluster.start()
    good = relay.config.read_text()
    edit(relay, ('via = ["a", "b"]', 'via = ["c"]'), ("", '\n[limits]\nhops_max = "many"\n'))
    mistakes = [
        f"smtpmesh: {relay.config}: limits.hops_max: must be a whole number, not 'many'",
        f"smtpmesh: {relay.config}: route[0].via: no smart host is named 'c'; there are: a, b",
    ]
    for words in ([], ["--admin", relay.admin]):
        done = smtpmesh(relay, "reload", *words)
        assert (done.returncode, done.stdout) == (78, "")
        assert [line for line in done.stderr.splitlines() if not line.endswith("goes on by its old configuration")] == (
            mistakes
        )
    hang_up(relay)
    wait_until(lambda: len(events(relay.server.log, "node.reload_refused")) == 2, 10, "the refusal of the signal")
    stranger = socket.create_server(("127.0.0.1", 0))
    taken = stranger.getsockname()[1]
    relay.config.write_text(
        good.replace("[admin]", f'[[listener]]\nname = "second"\nlisten = "127.0.0.1:{taken}"\n\n[admin]')
    )
    done = smtpmesh(relay, "reload")
    assert done.returncode == 78
    assert done.stderr.splitlines()[0] == "smtpmesh: relay-a goes on by its old configuration"
    assert f"{relay.config}: listener second: cannot listen on 127.0.0.1:{taken}: the port is in use" in done.stderr
    stranger.close()
    with dial(relay.ports["smtp"]) as client:
        client.sendmail("a@b.test", ["reader@example.test"], b"X-Demo-Id: still\r\n\r\nhere\r\n")
    relay.config.write_text(good)
    assert reload(relay).get("applied", []) == []


def test_reloads_at_once_all_end_and_the_last_file_counts(cluster: Cluster) -> None:
    relay = cluster.relays["relay A"]
    cluster.start()
    for number in range(1, 4):
        text = relay.config.read_text().replace(f"recipients_max = {number - 1}\n", "")
        text = text.replace("allow_networks =", f"recipients_max = {number}\nallow_networks =")
        replace_file(relay.config, text.encode(), mode=0o644)  # never half a file
        hang_up(relay)
        hang_up(relay)
    asked = [threading.Thread(target=reload, args=(relay,)) for _ in range(3)]
    for thread in asked:
        thread.start()
    for thread in asked:
        thread.join()
    reload(relay)
    assert relay.server.alive
    with dial(relay.ports["smtp"]) as client:
        assert b"LIMITS RCPTMAX=3" in client.ehlo()[1]
    assert events(relay.server.log, "node.reload_refused", "node.reload_failed") == []
    edit(relay, ('hostname = "relay-a.demo.test"', 'hostname = "mx.demo.test"\nzone = "cellar"'))
    assert reload(relay)["applied"] == ["node.hostname", "node.zone"]
    with dial(relay.ports["smtp"]) as client:
        assert client.ehlo()[1].startswith(b"mx.demo.test\n")
    calls = admin_calls(cluster)  # the database hears of it when the hold of good news is over
    wait_until(lambda: [node.zone for node in calls.call("relay A", "ListNodes").nodes] == ["cellar"], 40, "the zone")


def test_a_sink_of_the_users_own_comes_and_goes(cluster: Cluster) -> None:
    relay = cluster.relays["relay A"]
    edit(relay, ('via = ["a", "b"]', 'via = ["b"]'))
    cluster.start()
    calls = admin_calls(cluster)

    def send(prefix: str) -> set[str]:
        """Hosts that ten messages came to."""
        load = Submitter(cluster.submission_targets(), rate_mps=200, count_max=10, thread_count=2, prefix=prefix)
        load.start()
        assert load.join(20)
        drain(cluster, calls, load)
        return {arrival.host for arrival in cluster.arrivals() if arrival.message_id.startswith(prefix)}

    good = relay.config.read_text()
    assert send("one") == {"smart host B"}
    edit(relay, ("", f'\n[[sink]]\nuse = "{STATIC}"\nwith = {{ host = "a" }}\n'))
    assert reload(relay)["applied"] == ["sink"]
    assert send("two") == {"smart host A"}
    edit(relay, ('with = { host = "a" }', "with = {}"))
    done = smtpmesh(relay, "reload")
    assert done.returncode == 78
    assert "the settings in `with` do not fit" in done.stderr
    assert send("three") == {"smart host A"}
    relay.config.write_text(good)
    assert reload(relay)["applied"] == ["sink"]
    assert send("four") == {"smart host B"}


def shown_certificate(port: int, authority: Path) -> str:
    """Serial number that openssl s_client sees, verified by the authority."""
    found = subprocess.run(
        ["openssl", "s_client", "-connect", f"127.0.0.1:{port}", "-starttls", "smtp", "-CAfile", str(authority),
         "-verify_return_error"],
        input="QUIT\n", capture_output=True, text=True, timeout=20, check=False,
    )  # fmt: skip
    assert "Verify return code: 0 (ok)" in found.stdout, found.stdout + found.stderr
    serial = subprocess.run(
        ["openssl", "x509", "-noout", "-serial"], input=found.stdout, capture_output=True, text=True, check=True
    )
    return serial.stdout.strip()


def write_pair(relay: Relay, authority: Authority) -> None:
    certificate, key = authority.issue("tls", hosts=["relay-a.demo.test"], at=datetime.now(UTC))
    replace_file(relay.folder / "tls.crt", certificate + key, mode=0o600)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl")
def test_certificates_and_users_are_read_again(cluster: Cluster) -> None:
    relay = cluster.relays["relay A"]
    authority = Authority.create("clients", at=datetime.now(UTC))
    (cluster.directory / "clients.crt").write_bytes(authority.certificate_pem)
    write_pair(relay, authority)
    users = relay.folder / "users"
    users.write_text(f"sue:{hash_password('one')}\n")
    edit(relay, ('allow_networks = ["127.0.0.0/8"]', 'tls = "starttls"\ncertificate = "tls.crt"\nauth_users = "users"'))
    cluster.start()
    context = ssl.create_default_context(cafile=str(cluster.directory / "clients.crt"))
    context.check_hostname = False
    port = relay.ports["smtp"]
    with dial(port) as old:
        old.starttls(context=context)
        before = shown_certificate(port, cluster.directory / "clients.crt")
        write_pair(relay, authority)
        users.write_text(f"sue:{hash_password('two')}\n")
        answer = reload(relay)
        assert answer["applied"] == ["listener[smtp].certificate (content)", "listener[smtp].auth_users (content)"]
        assert shown_certificate(port, cluster.directory / "clients.crt") != before
        assert old.login("sue", "one")[0] == 235  # as it began
    with dial(port) as new:
        new.starttls(context=context)
        with pytest.raises(smtplib.SMTPAuthenticationError):
            new.login("sue", "one")
        assert new.login("sue", "two")[0] == 235
    (relay.folder / "tls.crt").write_text("no certificate")
    done = smtpmesh(relay, "reload")
    assert done.returncode == 78
    assert "listener[0].certificate" in done.stderr
    assert shown_certificate(port, cluster.directory / "clients.crt") != before
