"""SMTP replies as values (RFC 5321 section 4.2, enhanced status codes RFC 3463)."""

from __future__ import annotations

import re
from dataclasses import dataclass

_STATUS = re.compile(r"^[245]\.\d{1,3}\.\d{1,3}$")


@dataclass(frozen=True, slots=True)
class Reply:
    """A reply: code, optional enhanced status, text of one or more lines (separated by LF)."""

    code: int
    text: str
    status: str = ""

    def __post_init__(self) -> None:
        if not 200 <= self.code <= 599:
            raise ValueError(f"not an SMTP reply code: {self.code}")
        if self.status and (not _STATUS.match(self.status) or self.status[0] != str(self.code)[0]):
            raise ValueError(f"enhanced status {self.status!r} does not fit code {self.code}")

    @property
    def positive(self) -> bool:
        """2yz."""
        return 200 <= self.code < 300

    @property
    def transient(self) -> bool:
        """4yz."""
        return 400 <= self.code < 500

    @property
    def permanent(self) -> bool:
        """5yz."""
        return 500 <= self.code < 600

    def __str__(self) -> str:
        """One line for logs and for aiosmtpd, which wants `CODE text`."""
        text = self.text.replace("\n", " ")
        status = f" {self.status}" if self.status else ""
        return f"{self.code}{status} {text}" if text else f"{self.code}{status}"


NO_SPACE = Reply(452, "insufficient system storage", "4.3.1")
LOCAL_ERROR = Reply(451, "local error in processing", "4.3.0")
"""Our own faults, as clients hear of them; which one it was stands in the log."""


class Goodbye(Exception):
    """End the session after the reply."""

    def __init__(self, reply: Reply) -> None:
        super().__init__(str(reply))
        self.reply = reply
