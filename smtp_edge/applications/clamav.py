"""The virus scanner: a `data` sink that asks clamd, and says in the header what it knows.

    [[sink]]
    use = "clamav"
    rule = "listener=inbound"
    with = { address = "unix:/run/clamav/clamd.ctl" }

*Clean* is said only of what was looked at whole. What is too large for clamd, encrypted mail, and (with AlertEncrypted
in clamd.conf) archives that it cannot open are *not scanned*: they have a policy of their own. A clamd that is down,
hangs or answers nonsense is a failure: the binding's `on_failure`. A result that came with the message is somebody
else's; it is removed in any case.
"""

from __future__ import annotations

from typing import Literal

import structlog

from smtp_edge.applications.clamd import Scan, parse_address, scan
from smtp_edge.sinks.api import Discard, Message, Quarantine, Reject, Sink, TempFail, Verdict
from smtp_edge.sinks.fields import make_field

log = structlog.get_logger()

STREAM_BYTES_MAX = 100 * 1024 * 1024
"""StreamMaxLength of a clamd as Debian has it."""
INFECTED = {"reject", "quarantine", "discard"}
UNSCANNED = {"accept", "tempfail", "reject", "quarantine"}
_OPAQUE = ("multipart/encrypted", "application/pgp-encrypted")
_PKCS7 = ("application/pkcs7-mime", "application/x-pkcs7-mime")


class ClamAV(Sink):
    """See the module. ValueError for settings that mean nothing."""

    def __init__(
        self,
        address: str,
        infected: Literal["reject", "quarantine", "discard"] = "reject",
        unscanned: Literal["accept", "tempfail", "reject", "quarantine"] = "accept",
        header: str = "X-Virus-Status",
        stream_bytes_max: int = STREAM_BYTES_MAX,
    ) -> None:
        """`stream_bytes_max`: clamd's StreamMaxLength; larger messages are not sent to it."""
        for name, value, known in (("infected", infected, INFECTED), ("unscanned", unscanned, UNSCANNED)):
            if value not in known:
                raise ValueError(f"{name} = {value!r} is none of: {', '.join(sorted(known))}")
        make_field(header, "Clean")
        self._address = parse_address(address)
        self._infected, self._unscanned, self._header = infected, unscanned, header
        self._stream_bytes_max = stream_bytes_max
        self.owns = (header,)

    async def data(self, message: Message) -> Verdict | None:
        """Scan, and judge. ClamdError."""
        found = await self._scan(message)
        if found.malware:
            client, sender = message.client.address, message.envelope.sender
            log.warning("clamav.malware", name=found.malware, sender=sender, client=client)
            return self._judge_infected(found.malware)
        message.add_header(self._header, f"Not scanned; {found.unscanned}" if found.unscanned else "Clean")
        return self._judge_unscanned(found.unscanned) if found.unscanned else None

    async def _scan(self, message: Message) -> Scan:
        if message.size_bytes > self._stream_bytes_max:
            return Scan(unscanned=f"larger than {self._stream_bytes_max} bytes")
        found = await scan(self._address, message.content())
        if not found.malware and not found.unscanned and is_encrypted(message.headers.get("content-type")):
            return Scan(unscanned="encrypted")
        return found

    def _judge_infected(self, name: str) -> Verdict:
        if self._infected == "discard":
            return Discard()
        if self._infected == "quarantine":
            return Quarantine(f"malware: {name}")
        return Reject("the message contains malware", 550, "5.7.1")

    def _judge_unscanned(self, why: str) -> Verdict | None:
        match self._unscanned:
            case "tempfail":
                return TempFail("the message could not be scanned", 451, "4.7.1")
            case "reject":
                return Reject("messages that cannot be scanned are not taken", 550, "5.7.1")
            case "quarantine":
                return Quarantine(f"not scanned: {why}")
            case _:
                return None


def is_encrypted(content_type: str) -> bool:
    """By the type of the whole message: PGP/MIME or S/MIME that only its recipient can read."""
    kind, _, parameters = content_type.lower().partition(";")
    kind = kind.strip()
    return kind in _OPAQUE or (kind in _PKCS7 and "signed-data" not in parameters and "certs-only" not in parameters)
