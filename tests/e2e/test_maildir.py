"""Mail that comes in over SMTP is in a Maildir, and Dovecot shows it over IMAP in the right folder.

smtplib -> relay A: rcpt asks `maildir`, deliver writes ──> Maildir++ <── Dovecot <── imaplib
"""

from __future__ import annotations

import contextlib
import imaplib
import os
import shutil
import smtplib
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from smtp_edge.demo.cluster import Cluster, find_port
from tests.conftest import find_command
from tests.e2e.scene import admin_calls, wait_until

pytestmark = [
    pytest.mark.peer("dovecot", "imap"),
    pytest.mark.skipif(os.geteuid() != 0, reason="a private Dovecot needs root"),
]

DOVECOT = """\
base_dir = {folder}/run
state_dir = {folder}/state
log_path = {folder}/dovecot.log
protocols = imap
listen = 127.0.0.1
ssl = no
disable_plaintext_auth = no
default_login_user = nobody
default_internal_user = nobody
default_internal_group = nogroup
first_valid_uid = 1
mail_location = maildir:{root}/box.test/%n
auth_mechanisms = plain
passdb {{
  driver = static
  args = nopassword=y
}}
userdb {{
  driver = static
  args = uid=nobody gid=nogroup home=/tmp
}}
namespace inbox {{
  inbox = yes
  separator = /
}}
service imap-login {{
  chroot =
  inet_listener imap {{
    port = {port}
  }}
  inet_listener imaps {{
    port = 0
  }}
}}
service stats {{
  unix_listener stats-writer {{
    mode = 0666
  }}
}}
"""
SETTINGS = """\
[[sink]]
name = "mailbox"
use = "maildir"
rule = "rcpt to=*@box.test"
with = {{ root = "{root}", create_folders = true, mode = "0660", quota_bytes = 20000 }}
[[smart_host]]
name = "mailbox"
sink = "mailbox"
[[route]]
name = "box"
domains = ["box.test"]
via = ["mailbox"]
"""


@contextlib.contextmanager
def dovecot(folder: Path, root: Path) -> Iterator[int]:
    """A private instance; its IMAP port."""
    command = find_command("dovecot")
    assert command is not None
    for name in ("run", "state"):
        (folder / name).mkdir(parents=True)
    port = find_port(set())
    (folder / "dovecot.conf").write_text(DOVECOT.format(folder=folder, root=root, port=port))
    process = subprocess.Popen([command, "-F", "-c", str(folder / "dovecot.conf")])
    try:
        wait_until(lambda: listens(port), 15, f"dovecot; see {folder}/dovecot.log")
        yield port
    finally:
        process.terminate()
        process.wait(10)


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def make_mailbox(root: Path, name: str) -> None:
    """As an operator does: its files belong to the group that Dovecot has."""
    path = root / "box.test" / name
    path.mkdir(parents=True)
    shutil.chown(path, "nobody", "nogroup")
    path.chmod(0o2770)


def fetch(port: int, user: str, folder: str) -> list[bytes]:
    """All messages of an IMAP folder."""
    with imaplib.IMAP4("127.0.0.1", port) as client:
        client.login(user, "x")
        if client.select(folder)[0] != "OK":
            return []
        numbers = client.search(None, "ALL")[1][0].split()
        return [client.fetch(number, "(RFC822)")[1][0][1] for number in numbers]


def test_dovecot_shows_the_mail_in_the_right_folder(folder: Path) -> None:
    root = folder / "mail"
    for name in ("ann", "bob"):
        make_mailbox(root, name)
    with contextlib.ExitStack() as stack:
        port = stack.enter_context(dovecot(folder / "dovecot", root))
        settings = SETTINGS.format(root=root)
        mesh = Cluster(folder / "c", relays=("A",), hosts=(), external={"dead": 1}, settings=settings)
        cluster = stack.enter_context(mesh)
        relay = cluster.relays["relay A"]
        cluster.start()
        with smtplib.SMTP(*relay.smtp, timeout=20) as client:
            with pytest.raises(smtplib.SMTPRecipientsRefused) as refused:
                client.sendmail("sue@demo.test", ["nobody@box.test"], b"x: y\r\n\r\n")
            assert refused.value.recipients["nobody@box.test"][0] == 550
            text = "Subject: grüße\r\n\r\n.dot\r\n..\r\nbody  \r\n".encode()
            client.sendmail("sue@demo.test", ["ann@box.test", "bob+lists.python@box.test"], text, ["BODY=8BITMIME"])
            client.sendmail("sue@demo.test", ["ann@box.test"], b"Subject: large\r\n\r\n" + b"0123456789\r\n" * 1600)
        wait_until(lambda: len(fetch(port, "ann", "INBOX")) == 2, 20, "two messages of ann")
        wait_until(lambda: fetch(port, "bob", "lists/python"), 20, "the message in bob's folder")
        (stored,) = fetch(port, "bob", "lists/python")
        assert stored.startswith(
            b"Return-Path: <sue@demo.test>\r\nDelivered-To: bob+lists.python@box.test\r\nReceived: "
        )
        assert stored.endswith(text)
        assert fetch(port, "bob", "INBOX") == []
        assert any(message.endswith(text) for message in fetch(port, "ann", "INBOX"))

        calls = admin_calls(cluster)
        with smtplib.SMTP(*relay.smtp, timeout=20) as client:  # ann is over her quota now, bob is not
            client.sendmail("sue@demo.test", ["ann@box.test", "bob@box.test"], b"Subject: more\r\n\r\n" + b"9" * 900)
        wait_until(lambda: fetch(port, "bob", "INBOX"), 20, "the message of the one")
        wait_until(lambda: calls.waiting("relay A") == 1, 20, "the other's is tried again")
        assert len(fetch(port, "ann", "INBOX")) == 2
