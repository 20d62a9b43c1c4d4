"""OpenSMTPD as a contender, with the limits on its outbound sessions lifted.

It is unpacked, not installed, and runs in mounts of its own in which its users and spool are there
(tests/e2e/foreign.py). Debian 12's cannot sign in a TLS handshake, being older than its OpenSSL.
"""

from __future__ import annotations

from tests.bench.relays.contender import HOSTNAME, Contender, Place
from tests.e2e.foreign import missing, run_command

LIMITS = {
    **dict.fromkeys((f"conn-delay-{what}" for what in ("host", "source", "connector", "relay", "domain")), 0),
    **dict.fromkeys((f"max-conn-per-{what}" for what in ("host", "route", "connector", "relay")), 20),
    "session-mail-max": 100_000,
}
CONFIGURATION = """\
{limits}
smtp limit max-mails 1000000
smtp limit max-rcpt 1000
smtp max-message-size 100M
listen on 127.0.0.1 port {port} hostname {hostname}
action "sink" relay host smtp://127.0.0.1:{sink}
match from any for any action "sink"
"""


def prepare(place: Place) -> list[str]:
    """Write its file; the command."""
    limits = "\n".join(f"mta limit {name} {value}" for name, value in LIMITS.items())
    text = CONFIGURATION.format(limits=limits, port=place.port, sink=place.sink, hostname=HOSTNAME)
    (place.folder / "conf").write_text(text)
    (place.folder / "conf").chmod(0o600)
    return run_command("smtpd", place.folder, f"-F -f {place.folder}/conf")


OPENSMTPD = Contender("opensmtpd", lambda: missing("smtpd"), prepare, tls=False)
