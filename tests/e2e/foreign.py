"""Exim and OpenSMTPD as others run them: real daemons, each with a folder, users and paths of its own.

Debian installs one mail server for each machine, so `deploy/run.py test` only unpacks these two. Both look for users by
name, and OpenSMTPD for its spool, where Debian put them: so each runs in a mount namespace in which its folder stands
there, and the machine sees nothing of it. Each takes mail on a port of loopback, for anybody there, and sends what is
for `out.test` and below to one port, everything else to another.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from pathlib import Path
from types import TracebackType

from smtp_edge.demo.cluster import find_port
from tests.conftest import find_command
from tests.e2e.scene import wait_until

START_TIMEOUT_S = 15.0
FIRST_ID = 64_990
USER, PASSWORD = "relay", "open sesame"
"""Exim takes AUTH with these, and gives them where it is asked to log in."""

EXIM = """\
primary_hostname = exim.test
exim_path = {path}
spool_directory = {folder}/spool
log_file_path = {folder}/log/%slog
pid_file_path = {folder}/exim.pid
local_interfaces = 127.0.0.1
daemon_smtp_ports = {port}
keep_environment =
smtputf8_advertise_hosts = *
dsn_advertise_hosts = *
tls_advertise_hosts = *
tls_certificate = {pem}
acl_smtp_rcpt = accept
acl_smtp_data = accept
message_size_limit = 200M
queue_run_max = 5
recipients_max = 5000
smtp_accept_max = 0
begin routers
outwards:
  driver = manualroute
  domains = out.test : *.out.test
  transport = outwards
  route_list = * 127.0.0.1 byname
  self = send
rest:
  driver = manualroute
  transport = rest
  route_list = * 127.0.0.1 byname
  self = send
begin transports
outwards:
  driver = smtp
  port = {out_port}
  hosts_require_tls = *
  hosts_require_auth = *
rest:
  driver = smtp
  port = {rest_port}
begin retry
* * F,1h,1s
begin authenticators
plain:
  driver = plaintext
  public_name = PLAIN
  server_prompts = :
  server_condition = ${{if and {{{{eq{{$auth2}}{{{user}}}}}{{eq{{$auth3}}{{{password}}}}}}}}}
  server_advertise_condition = ${{if def:tls_in_cipher}}
  server_set_id = $auth2
  client_send = ^{user}^{password}
"""
OPENSMTPD = """\
pki localhost cert "{pem}"
pki localhost key "{pem}"
table login {{ us = "{user}:{password}" }}
smtp max-message-size 200M
listen on 127.0.0.1 port {port} tls pki localhost
action "outwards" relay host smtp+tls://us@127.0.0.1:{out_port} auth <login> tls no-verify
action "rest" relay host smtp://127.0.0.1:{rest_port}
match from any for domain {{ "out.test" "*.out.test" }} action "outwards"
match from any for any action "rest"
"""
MOUNTS = {
    "exim4": ["mkdir -p log spool && chown -R {uid}:{uid} log spool"],
    "smtpd": [
        "mkdir -p spool run/empty",
        "chmod 711 spool",
        "mount -t tmpfs -o mode=755 none /var/spool && mkdir /var/spool/smtpd && mount --bind spool /var/spool/smtpd",
        "mount -t tmpfs -o mode=755 none /var/lib && mkdir -p /var/lib/opensmtpd/empty",
        "mount -t tmpfs -o mode=755 none /run",
    ],
}
USERS = {"exim4": ("Debian-exim",), "smtpd": ("opensmtpd", "opensmtpq")}
RUN = {"exim4": "-C {folder}/conf -bdf -q5s", "smtpd": "-d -f {folder}/conf"}
CONFIGURATIONS = {"exim4": EXIM, "smtpd": OPENSMTPD}


def missing(command: str) -> str:
    """Why a server cannot be used here; empty if it can."""
    if find_command(command) is None:
        return f"needs {command} (python3 deploy/run.py test unpacks it)"
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        return f"a private {command} needs root and unshare"
    done = subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False)
    return "" if done.returncode == 0 else "mount namespaces are not allowed here"


def run_command(command: str, folder: Path, words: str) -> list[str]:
    """That runs one of the two with these words, in the foreground, as if its users and its spool were there."""
    names = list(enumerate(USERS[command], FIRST_ID))
    lines = ["set -e", f"cd {folder}", "cp /etc/passwd /etc/group ."]
    lines += [f"echo {name}:x:{uid}:{uid}::/nonexistent:/usr/sbin/nologin >> passwd" for uid, name in names]
    lines += [f"echo {name}:x:{uid}: >> group" for uid, name in names]
    lines += ["mount --bind passwd /etc/passwd", "mount --bind group /etc/group"]
    lines += [line.format(uid=FIRST_ID) for line in MOUNTS[command]]
    lines.append(f"exec {find_command(command)} {words}")
    return ["unshare", "-m", "--propagation", "private", "sh", "-c", "\n".join(lines)]


class Foreign:
    """One of the two. `pem`: certificate for localhost, chain and key."""

    def __init__(self, command: str, folder: Path, *, pem: Path, out_port: int, rest_port: int) -> None:
        self.command, self.folder, self.port = command, folder, find_port(set())
        folder.mkdir(parents=True)
        own_pem = folder / "server.pem"
        own_pem.write_bytes(pem.read_bytes())
        own_pem.chmod(0o600)
        if command == "exim4":
            shutil.chown(own_pem, FIRST_ID, FIRST_ID)
        text = CONFIGURATIONS[command].format(
            folder=folder,
            path=find_command(command),
            port=self.port,
            pem=own_pem,
            out_port=out_port,
            rest_port=rest_port,
            user=USER,
            password=PASSWORD,
        )
        (folder / "conf").write_text(text)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start and wait until it listens."""
        with (self.folder / "out.log").open("wb") as out:
            self._process = subprocess.Popen(
                run_command(self.command, self.folder, RUN[self.command].format(folder=self.folder)),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        wait_until(self._listens, START_TIMEOUT_S, f"{self.command} on port {self.port}; see {self.folder}")

    def stop(self) -> None:
        """End it and what it has started."""
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(5)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait(5)

    def _listens(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, (self.folder / "out.log").read_text(errors="replace")
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def __enter__(self) -> Foreign:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
