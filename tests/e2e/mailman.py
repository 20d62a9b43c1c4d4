"""A private GNU Mailman 3 in a folder of its own: LMTP in, SMTP out, SQLite, asked and ordered over REST.

It is installed below .venv/peers by the test command (`deploy/run.py`); nothing of the machine's own is touched.
"""

from __future__ import annotations

import base64
import json
import os
import smtplib
import subprocess
import time
import urllib.parse
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Any

from smtp_edge.demo.cluster import find_port
from tests.conftest import PEERS
from tests.e2e.keeper import Keeper, Kept
from tests.e2e.scene import wait_until

COMMAND = PEERS / "mailman" / "bin" / "mailman"
RUNNERS = ("archive", "digest", "nntp", "task", "bounces", "retry")
"""Not needed for the story."""
SETTINGS = """\
[mailman]
site_owner: owner@people.test
layout: own
[paths.own]
var_dir: {folder}/var
bin_dir: {commands}
[database]
class: mailman.database.sqlite.SQLiteDatabase
url: sqlite:///{folder}/mailman.db
[mta]
incoming: mailman.mta.null.NullMTA
lmtp_host: 127.0.0.1
lmtp_port: {lmtp}
smtp_host: 127.0.0.1
smtp_port: {smtp}
verp_personalized_deliveries: yes
verp_delivery_interval: 1
[webservice]
hostname: 127.0.0.1
port: {rest}
admin_user: rest
admin_pass: secret
"""
QUEUES = ("in", "pipeline", "command", "virgin", "out")
LIST_SETTINGS = {
    "subject_prefix": "",
    "subscription_policy": "confirm",
    "unsubscription_policy": "confirm",
    "default_nonmember_action": "hold",
    "admin_immed_notify": "true",
    "require_explicit_destination": "false",
    "send_welcome_message": "true",
}
"""As the other list is: no prefix, confirmations, strangers are held."""
QUIET_S = 1.6
"""Nothing is in its queues and nothing has come for so long: that was all. It looks into them once a second."""


class Mailman:
    """With the list talk@lists.test, whose owner is owner@people.test."""

    def __init__(self, folder: Path, keeper: Keeper) -> None:
        self.folder, self.keeper = folder, keeper
        self.lmtp, self.rest = find_port(set()), find_port(set())
        self._seen = 0
        folder.mkdir()
        text = SETTINGS.format(folder=folder, commands=COMMAND.parent, lmtp=self.lmtp, rest=self.rest, smtp=keeper.port)
        text += "".join(f"[runner.{name}]\nstart: no\n" for name in RUNNERS)
        (folder / "mailman.cfg").write_text(text)

    def __enter__(self) -> Mailman:
        self._run("start", "--force")
        wait_until(self._serves, 60, f"Mailman; see {self.folder}/var/logs")
        self.ask("POST", "/domains", mail_host="lists.test")
        self.ask("POST", "/lists", fqdn_listname="talk@lists.test")
        self.ask("PATCH", "/lists/talk.lists.test/config", **LIST_SETTINGS)
        owner = {"list_id": "talk.lists.test", "subscriber": "owner@people.test", "role": "owner"}
        self.ask("POST", "/members", **owner, pre_verified="true", pre_confirmed="true", pre_approved="true")
        self.take()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._run("stop")

    def _run(self, *words: str) -> None:
        """It leaves its processes behind, which must not have our pipes, and writes where it stands."""
        command = [str(COMMAND), "--run-as-root", "-C", str(self.folder / "mailman.cfg"), *words]
        with (self.folder / "command.log").open("ab") as log:
            subprocess.run(
                command, check=True, cwd=self.folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log, timeout=60
            )

    def _serves(self) -> bool:
        try:
            self.ask("GET", "/system/versions")
            with smtplib.LMTP("127.0.0.1", self.lmtp, timeout=5):
                return True
        except (OSError, smtplib.SMTPException):
            return False

    def ask(self, method: str, path: str, **fields: str) -> Any:
        """One call of its REST service."""
        data = urllib.parse.urlencode(fields).encode() if fields else None
        request = urllib.request.Request(f"http://127.0.0.1:{self.rest}/3.1{path}", data, method=method)
        request.add_header("Authorization", "Basic " + base64.b64encode(b"rest:secret").decode())
        with urllib.request.urlopen(request, timeout=20) as answer:
            text = answer.read()
        return json.loads(text) if text else None

    # -- the story -----------------------------------------------------------------------------------------------------

    def send(self, sender: str, to: str, subject: str, **fields: str) -> None:
        names = {"From": sender or "robot@people.test", "To": to, "Subject": subject}
        names["Message-ID"] = f"<{time.time_ns()}@people.test>"
        header = names | {name.replace("_", "-"): value for name, value in fields.items()}
        text = "".join(f"{name}: {value}\r\n" for name, value in header.items()) + "\r\nhello\r\n"
        with smtplib.LMTP("127.0.0.1", self.lmtp, timeout=20) as client:
            client.sendmail(sender, [to], text.encode())

    def take(self) -> list[Kept]:
        wait_until(self._quiet, 60, "an end of the mail")
        new = self.keeper.messages[self._seen :]
        self._seen += len(new)
        return new

    def _quiet(self) -> bool:
        before, until = len(self.keeper.messages), time.monotonic() + QUIET_S
        while time.monotonic() < until:
            if self._queued() or len(self.keeper.messages) != before:
                return False
            time.sleep(0.1)
        return True

    def _queued(self) -> bool:
        waiting = [self.folder / "var" / "queue" / name for name in QUEUES]
        return any(name.endswith((".pck", ".bak")) for path in waiting for name in os.listdir(path))

    def approve(self, notices: list[Kept]) -> None:
        self._decide("accept")

    def refuse(self, notices: list[Kept]) -> None:
        self._decide("reject")

    def _decide(self, action: str) -> None:
        (held,) = self.ask("GET", "/lists/talk.lists.test/held")["entries"]
        self.ask("POST", f"/lists/talk.lists.test/held/{held['request_id']}", action=action)
