"""Exim as a contender: Debian's daemon, each message delivered as soon as it is there.

It is unpacked, not installed, and runs in mounts of its own in which its user is there (tests/e2e/foreign.py).
"""

from __future__ import annotations

from tests.bench.relays.contender import HOSTNAME, Contender, Place
from tests.conftest import find_command
from tests.e2e.foreign import missing, run_command

CONFIGURATION = """\
primary_hostname = {hostname}
exim_path = {path}
spool_directory = {folder}/spool
log_file_path = {folder}/log/%slog
pid_file_path = {folder}/exim.pid
local_interfaces = 127.0.0.1
daemon_smtp_ports = {port}
disable_ipv6
keep_environment =
{tls}
acl_smtp_rcpt = accept
acl_smtp_data = accept
# nothing is looked up, nothing waits for a queue run, spool and logs cost little
host_lookup =
smtp_accept_max = 200
smtp_accept_max_per_connection = 1000000
smtp_accept_queue_per_connection = 0
split_spool_directory
no_message_logs
deliver_drop_privilege
begin routers
sink:
  driver = manualroute
  transport = sink
  route_list = * 127.0.0.1 byname
  self = send
begin transports
sink:
  driver = smtp
  port = {sink}
  hosts_try_fastopen =
begin retry
* * F,1h,5s
"""


def prepare(place: Place) -> list[str]:
    """Write its file; the command."""
    tls = "tls_advertise_hosts ="
    if place.pem is not None:
        tls = f"tls_advertise_hosts = *\ntls_certificate = {place.pem}"
        place.pem.chmod(0o644)  # it reads it as its own user
    values = {"hostname": HOSTNAME, "path": find_command("exim4"), "folder": place.folder, "tls": tls}
    text = CONFIGURATION.format(port=place.port, sink=place.sink, **values)
    (place.folder / "conf").write_text(text)
    return run_command("exim4", place.folder, f"-C {place.folder}/conf -bdf -q10s")


EXIM = Contender("exim", lambda: missing("exim4"), prepare, setuid=True)
