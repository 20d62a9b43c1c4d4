"""A private Postfix instance in a folder of its own: another's MTA as a client and as a smart host.

Needs root (Postfix changes users) and Debian's postfix package. Nothing of the machine's own mail system is touched.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from pathlib import Path
from types import TracebackType

from smtp_edge.demo.cluster import find_port
from tests.e2e.scene import wait_until

SIZE_BYTES_MAX = 30 * 1024 * 1024
START_TIMEOUT_S = 20.0

MAIN = """\
compatibility_level = 3.6
queue_directory = {folder}/queue
data_directory = {folder}/data
mail_owner = postfix
setgid_group = postdrop
maillog_file = {folder}/mail.log
maillog_file_prefixes = {folder}
myhostname = {hostname}
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
mydestination =
local_recipient_maps =
alias_maps =
alias_database =
mynetworks = 127.0.0.0/8
smtpd_relay_restrictions = permit_mynetworks, reject
smtpd_client_connection_count_limit = 0
relayhost = [127.0.0.1]:{relay_port}
smtp_dns_support_level = disabled
smtp_host_lookup = native
smtp_tls_security_level = none
smtputf8_enable = yes
message_size_limit = {size_bytes_max}
mailbox_size_limit = 0
in_flow_delay = 0
queue_run_delay = 2s
minimal_backoff_time = 2s
maximal_backoff_time = 5s
"""

TLS = """\
smtpd_tls_security_level = may
smtpd_tls_chain_files = {pem}
smtpd_tls_loglevel = 1
"""

MASTER = """\
127.0.0.1:{port} inet n - n - - smtpd
cleanup unix n - n - 0 cleanup
qmgr unix n - n 300 1 qmgr
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
trace unix - - n - 0 bounce
verify unix - - n - 1 verify
proxymap unix - - n - - proxymap
smtp unix - - n - - smtp
relay unix - - n - - smtp
showq unix n - n - - showq
error unix - - n - - error
retry unix - - n - - error
anvil unix - - n - 1 anvil
scache unix - - n - 1 scache
tlsmgr unix - - n 1000? 1 tlsmgr
postlog unix-dgram n - n - 1 postlogd
"""


def missing() -> str:
    """Why Postfix cannot be used here; empty if it can."""
    if shutil.which("postfix") is None:
        return "needs postfix (apt-get install postfix)"
    return "" if os.geteuid() == 0 else "a private Postfix instance needs root"


class Postfix:
    """Takes mail on `port` from loopback and relays all of it to `relay_port`."""

    def __init__(
        self, folder: Path, *, hostname: str, relay_port: int, port: int = 0, pem: Path | None = None, more: str = ""
    ) -> None:
        """`pem`: certificate, chain and key, with which it offers STARTTLS. `more`: further lines of main.cf."""
        self.folder = folder
        self.port = port or find_port(set())
        for name in ("queue", "data"):
            (folder / name).mkdir(parents=True)
        shutil.chown(folder / "data", user="postfix")
        (folder / "data").chmod(0o700)
        values = {"folder": folder, "hostname": hostname, "relay_port": relay_port, "size_bytes_max": SIZE_BYTES_MAX}
        tls = TLS.format(pem=pem) if pem is not None else ""
        (folder / "main.cf").write_text(MAIN.format(**values) + tls + more)
        (folder / "master.cf").write_text(MASTER.format(port=self.port))

    def start(self) -> None:
        """Start and wait until it listens."""
        self._command("start")
        wait_until(self._listens, START_TIMEOUT_S, f"postfix on port {self.port}; see {self.folder}/mail.log")

    def stop(self) -> None:
        """Stop at once."""
        self._command("abort", check=False)

    def flush(self) -> None:
        """Try what is deferred now."""
        self._command("flush", check=False)

    def queued_count(self) -> int:
        """Messages in its queue."""
        queue = self.folder / "queue"
        return sum(
            1 for name in ("incoming", "active", "deferred") for file in (queue / name).rglob("*") if file.is_file()
        )

    def _listens(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def _command(self, verb: str, *, check: bool = True) -> None:
        done = subprocess.run(
            ["postfix", "-c", str(self.folder), verb], capture_output=True, text=True, timeout=60, check=False
        )
        if check:
            assert done.returncode == 0, f"postfix {verb}: {done.stderr}"

    def __enter__(self) -> Postfix:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
