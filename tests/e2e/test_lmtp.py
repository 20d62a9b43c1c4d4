"""A relay delivers into Dovecot over LMTP: mailboxes, one over its quota, one unknown, and reports for the sender.

smtplib -> relay A ──LMTP──> Dovecot -> Maildir;  reports go to a server that writes down what arrives
"""

from __future__ import annotations

import contextlib
import os
import smtplib
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from smtp_edge.demo.cluster import Cluster, HostPlan
from tests.conftest import find_command
from tests.e2e.scene import admin_calls, events, records, wait_until

pytestmark = [
    pytest.mark.peer("dovecot", "lmtp"),
    pytest.mark.skipif(os.geteuid() != 0, reason="a private Dovecot needs root"),
]

SENDER = "sender@demo.test"
DOVECOT = """\
base_dir = {folder}/run
state_dir = {folder}/state
log_path = {folder}/dovecot.log
protocols = lmtp
{more}
ssl = no
default_login_user = nobody
default_internal_user = nobody
default_internal_group = nogroup
first_valid_uid = 1
mail_location = maildir:{folder}/mail/%n
mail_plugins = quota
auth_mechanisms = plain
passdb {{
  driver = static
  args = nopassword=y
}}
userdb {{
  driver = passwd-file
  args = username_format=%n {folder}/users
}}
plugin {{
  quota = maildir:User quota
  quota_rule = *:storage=10M
}}
service lmtp {{
  unix_listener {folder}/lmtp.sock {{
    mode = 0666
  }}
}}
service stats {{
  unix_listener stats-writer {{
    mode = 0666
  }}
}}
"""
USERS = """\
ann::{uid}:{gid}::/tmp::
bob::{uid}:{gid}::/tmp::userdb_quota_rule=*:storage=1K
"""
SETTINGS = """\
[[smart_host]]
name = "store"
socket = "{socket}"
protocol = "lmtp"
[[route]]
name = "store"
domains = ["box.test"]
via = ["store"]
"""


@contextlib.contextmanager
def dovecot(folder: Path, more: str = "") -> Iterator[Path]:
    """A private instance with more settings; its LMTP socket."""
    command = find_command("dovecot")
    assert command is not None
    for name in ("mail", "run", "state"):
        (folder / name).mkdir(parents=True)
    (folder / "mail").chmod(0o777)
    (folder / "users").write_text(USERS.format(uid=65534, gid=65534))
    (folder / "dovecot.conf").write_text(DOVECOT.format(folder=folder, more=more))
    process = subprocess.Popen([command, "-F", "-c", str(folder / "dovecot.conf")])
    try:
        wait_until((folder / "lmtp.sock").exists, 15, f"dovecot; see {folder}/dovecot.log")
        yield folder / "lmtp.sock"
    finally:
        process.terminate()
        process.wait(10)


def read_reports(cluster: Cluster) -> list[dict[str, Any]]:
    return [line for line in records(cluster.hosts["smart host S"].ledger) if line["sender"] == ""]


def attempts(cluster: Cluster) -> list[dict[str, Any]]:
    return events(cluster.relays["relay A"].server.log, "attempt")


def mailbox(folder: Path, name: str) -> list[Path]:
    return sorted((folder / "dovecot" / "mail" / name).glob("new/*"))


@pytest.mark.rfc("2033 4.2a")
def test_a_mail_store_answers_for_each_recipient(folder: Path) -> None:
    with contextlib.ExitStack() as stack:
        socket = stack.enter_context(dovecot(folder / "dovecot"))
        settings = SETTINGS.format(socket=socket)
        cluster = Cluster(folder / "c", relays=("A",), hosts=(HostPlan("S"),), settings=settings)
        stack.enter_context(cluster)
        cluster.start()
        with smtplib.SMTP(*cluster.relays["relay A"].smtp, timeout=20) as client:
            client.ehlo()
            client.mail(SENDER, ["ENVID=E42"])
            for name, notify in (("ann", "SUCCESS"), ("bob", "FAILURE"), ("carol", "FAILURE")):
                assert client.rcpt(f"{name}@box.test", [f"NOTIFY={notify}"])[0] == 250
            text = b"Subject: for three\r\nFrom: x@demo.test\r\n\r\n" + b"0123456789\r\n" * 1000
            assert client.data(text)[0] == 250
        wait_until(lambda: mailbox(folder, "ann"), 20, "the mail in the mailbox")
        wait_until(lambda: read_reports(cluster), 20, "the report")
        (stored,) = mailbox(folder, "ann")
        assert b"Subject: for three" in stored.read_bytes()
        assert mailbox(folder, "bob") == []
        (report,) = read_reports(cluster)
        assert report["recipients"] == [SENDER]
        (attempt,) = [line for line in attempts(cluster) if line["next_hop"] == "host:store"]
        assert (attempt["outcome"], attempt["recipients"], attempt["refused"]) == ("accepted", 3, 2)


def test_one_is_over_quota_and_tried_again_while_the_other_has_the_mail(folder: Path) -> None:
    with contextlib.ExitStack() as stack:
        socket = stack.enter_context(dovecot(folder / "dovecot", "quota_full_tempfail = yes"))
        settings = SETTINGS.format(socket=socket) + "[queue]\nretry_first_s = 1\nretry_max_s = 2\n"
        cluster = Cluster(folder / "c", relays=("A",), hosts=(HostPlan("S"),), settings=settings)
        stack.enter_context(cluster)
        cluster.start()
        calls = admin_calls(cluster)
        with smtplib.SMTP(*cluster.relays["relay A"].smtp, timeout=20) as client:
            text = b"Subject: for two\r\n\r\n" + b"0123456789\r\n" * 1000
            client.sendmail(SENDER, ["ann@box.test", "bob@box.test"], text)
        wait_until(lambda: mailbox(folder, "ann"), 20, "the mail in the mailbox that has room")
        wait_until(lambda: len(attempts(cluster)) >= 3, 20, "two attempts more for the other")
        assert calls.waiting("relay A") == 1
        assert mailbox(folder, "bob") == []
        users = folder / "dovecot" / "users"
        users.write_text(users.read_text().replace("storage=1K", "storage=1M"))
        wait_until(lambda: mailbox(folder, "bob"), 20, "the mail in the mailbox that has room now")
        wait_until(lambda: calls.waiting("relay A") == 0, 20, "an empty queue")
        assert (len(mailbox(folder, "ann")), len(mailbox(folder, "bob"))) == (1, 1)
        assert read_reports(cluster) == [], "nobody is told of what went well in the end"
