"""Postfix as a contender: as Debian ships it, and tuned by somebody who wants it to win.

Both are private instances below their folder: nothing of the machine's own mail system is read but the programs.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping

from tests.bench.relays.contender import HOSTNAME, Contender, Place
from tests.conftest import find_command

Parameters = Mapping[str, str]

SERVICES = """\
127.0.0.1:{port} inet n - n - - smtpd
pickup unix n - n 60 1 pickup
cleanup unix n - n - 0 cleanup
qmgr unix n - n 300 1 qmgr
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
trace unix - - n - 0 bounce
verify unix - - n - 1 verify
flush unix n - n 1000? 0 flush
tlsmgr unix - - n 1000? 1 tlsmgr
proxymap unix - - n - - proxymap
smtp unix - - n - - smtp
relay unix - - n - - smtp
showq unix n - n - - showq
error unix - - n - - error
retry unix - - n - - error
anvil unix - - n - 1 anvil
scache unix - - n - 1 scache
postlog unix-dgram n - n - 1 postlogd
"""
"""Debian's, without chroot, local delivery and UUCP."""

TUNED: Parameters = {
    # as many processes and connections as help, nothing that slows clients down
    "default_process_limit": "200",
    "in_flow_delay": "0",
    "smtpd_client_connection_count_limit": "0",
    "smtpd_client_connection_rate_limit": "0",
    "smtpd_client_event_limit_exceptions": "static:all",
    "smtpd_error_sleep_time": "0",
    "initial_destination_concurrency": "20",
    "default_destination_concurrency_limit": "40",
    "qmgr_message_active_limit": "50000",
    "max_use": "10000",
    # sessions with the next hop are kept and used again
    "smtp_connection_cache_on_demand": "yes",
    "smtp_connection_cache_destinations": "[127.0.0.1]:{sink}",
    "smtp_connection_reuse_count_limit": "0",
    "smtp_connection_reuse_time_limit": "300s",
    # no names are looked up, no addresses rewritten, no policies asked
    "smtpd_peername_lookup": "no",
    "smtp_dns_support_level": "disabled",
    "receive_override_options": "no_address_mappings",
    "local_header_rewrite_clients": "",
    "smtpd_recipient_restrictions": "permit_mynetworks, reject",
    "smtputf8_enable": "no",
    "address_verify_map": "",
}


def missing() -> str:
    """Why it cannot take part; empty if it can."""
    return "" if find_command("postfix") else "needs postfix (apt-get install postfix)"


def prepare(place: Place, more: Parameters) -> list[str]:
    """Write both files; the command."""
    configuration, queue, state = (place.folder / name for name in ("etc", "queue", "state"))
    for folder in (configuration, queue, state):
        folder.mkdir()
    shutil.chown(state, user="postfix")
    parameters = {
        "compatibility_level": "3.6",
        "queue_directory": str(queue),
        "data_directory": str(state),
        "maillog_file": str(place.folder / "mail.log"),
        "maillog_file_prefixes": str(place.folder),
        "mail_owner": "postfix",
        "setgid_group": "postdrop",
        "myhostname": HOSTNAME,
        "mydestination": "",
        "alias_maps": "",
        "alias_database": "",
        "inet_interfaces": "127.0.0.1",
        "inet_protocols": "ipv4",
        "mynetworks": "127.0.0.0/8",
        "smtpd_relay_restrictions": "permit_mynetworks, reject",
        "relayhost": f"[127.0.0.1]:{place.sink}",
        **{key: value.format(sink=place.sink) for key, value in more.items()},
    }
    if place.pem:
        parameters["smtpd_tls_security_level"] = "may"
        parameters["smtpd_tls_chain_files"] = str(place.pem)
    lines = [f"{key} = {value}".rstrip() for key, value in parameters.items()]
    (configuration / "main.cf").write_text("\n".join(lines) + "\n")
    (configuration / "master.cf").write_text(SERVICES.format(port=place.port))
    return [find_command("postfix") or "postfix", "-c", str(configuration), "start-fg"]


DEFAULT_POSTFIX = Contender("postfix", missing, lambda place: prepare(place, {}), yardstick=True)
TUNED_POSTFIX = Contender("postfix-tuned", missing, lambda place: prepare(place, TUNED), yardstick=True)
