"""Clients that submit mail: smtplib in threads, so that no code of the relay takes part in saying what was accepted.

A message counts as accepted only when its 250 was read. If a relay refuses or dies the client goes to the next one, as
mail programs do; if it dies between the final dot and its answer the client cannot know, notes the doubt, and sends the
message again.
"""

from __future__ import annotations

import hashlib
import itertools
import random
import smtplib
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from smtp_edge.demo.ledger import Submission
from smtp_edge.demo.smart_host import ID_HEADER

REPLY_TIMEOUT_S = 20.0
PAUSE_S = 0.1
"""Pause after a full round of relays that all failed."""
ROUNDS_MAX = 200
"""Rounds over all relays before a client gives a message up (it then counts as never accepted)."""
BURST_S = 0.5
"""Lateness that the clients make up for; beyond it the offered rate drops instead."""

BuildMessage = Callable[[str], bytes]


def build_message(message_id: str, size_bytes: int = 2000) -> bytes:
    """A small text message, body reproducible from its id; CRLF line ends, one line that begins with a dot."""
    rng = random.Random(message_id)
    words = "".join(rng.choices("abcdefghijklmnopqrstuvwxyz     ", k=max(1, size_bytes)))
    lines = [words[start : start + 70].strip() for start in range(0, len(words), 70)]
    header = f"{ID_HEADER}: {message_id}\r\nMessage-ID: <{message_id}@demo.test>\r\nFrom: <client@demo.test>\r\n"
    header += f"To: <reader@example.test>\r\nSubject: demo {message_id}\r\n\r\n"
    return (header + "\r\n".join([".a line that begins with a dot", *lines]) + "\r\n").encode()


def body_sha256(message: bytes) -> str:
    """Digest of what follows the first empty line."""
    return hashlib.sha256(message.partition(b"\r\n\r\n")[2]).hexdigest()


@dataclass(frozen=True, slots=True)
class Counts:
    """Totals at an instant."""

    submitted: int
    accepted: int
    doubts: int


@dataclass(slots=True)
class Connections:
    """One thread's open sessions, by relay."""

    sessions: dict[str, smtplib.SMTP] = field(default_factory=dict)

    def get(self, relay: str, host: str, port: int) -> smtplib.SMTP:
        """An open session, a new one if need be."""
        session = self.sessions.get(relay)
        if session is None:
            session = smtplib.SMTP(host, port, local_hostname="client.demo.test", timeout=REPLY_TIMEOUT_S)
            self.sessions[relay] = session
            session.ehlo_or_helo_if_needed()
        return session

    def drop(self, relay: str) -> None:
        """Close without a word."""
        session = self.sessions.pop(relay, None)
        if session is not None:
            session.close()

    def close(self) -> None:
        """Close all."""
        for relay in list(self.sessions):
            self.drop(relay)


class Submitter:
    """`thread_count` clients that together offer `rate_mps` messages per second to the relays, round-robin."""

    def __init__(
        self,
        relays: Mapping[str, tuple[str, int]],
        *,
        rate_mps: float,
        thread_count: int = 12,
        count_max: int | None = None,
        prefix: str = "m",
        message: BuildMessage = build_message,
        sender: str = "client@demo.test",
        recipient: str = "reader@example.test",
    ) -> None:
        self._relays = dict(relays)
        self._rate_mps = rate_mps
        self._count_max = count_max
        self._prefix = prefix
        self._message = message
        self._sender, self._recipient = sender, recipient
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._next_at = 0.0
        self._numbers = itertools.count(1)
        self._submissions: dict[str, Submission] = {}
        self._accepted_count = self._doubt_count = 0
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(thread_count)]

    # -- from outside --------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to submit."""
        self._next_at = time.monotonic()
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Submit nothing new, finish what was begun."""
        self._stop.set()
        self.join()

    def join(self, timeout_s: float | None = None) -> bool:
        """Wait until all of `count_max` are done; False after `timeout_s`."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        for thread in self._threads:
            thread.join(None if deadline is None else max(0.0, deadline - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def set_rate(self, rate_mps: float) -> None:
        """Change the offered rate."""
        with self._lock:
            self._rate_mps = rate_mps

    def counts(self) -> Counts:
        """Totals so far."""
        with self._lock:
            return Counts(len(self._submissions), self._accepted_count, self._doubt_count)

    def submissions(self) -> list[Submission]:
        """A copy of all that was submitted so far."""
        with self._lock:
            return list(self._submissions.values())

    # -- one client ----------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        connections = Connections()
        while (number := self._next_number()) is not None:
            message_id = f"{self._prefix}-{number:05d}"
            message = self._message(message_id)
            self._note(Submission(message_id, body_sha256(message), time.time()))
            self._submit(connections, number, message_id, message)
        connections.close()

    def _next_number(self) -> int | None:
        """Wait for this client's turn in the common schedule; None when there is no more to do."""
        with self._lock:
            number = next(self._numbers)
            now = time.monotonic()
            turn_at = self._next_at = max(self._next_at, now - BURST_S) + 1 / self._rate_mps
        if self._count_max is not None and number > self._count_max:
            return None
        return None if self._stop.wait(max(0.0, turn_at - now)) else number

    def _submit(self, connections: Connections, number: int, message_id: str, message: bytes) -> None:
        names = list(self._relays)
        for step in range(ROUNDS_MAX * len(names)):
            relay = names[(number + step) % len(names)]
            if step and step % len(names) == 0:
                time.sleep(PAUSE_S)
            outcome = self._offer(connections, relay, message)
            with self._lock:
                before = self._submissions[message_id]
                if outcome == "accepted":
                    self._submissions[message_id] = replace(before, accepted_at=time.time(), relay=relay)
                    self._accepted_count += 1
                    return
                if outcome == "doubt":
                    self._submissions[message_id] = replace(before, doubts=(*before.doubts, relay))
                    self._doubt_count += 1

    def _offer(self, connections: Connections, relay: str, message: bytes) -> str:
        """Offer a message to one relay: `accepted`, `refused` or `doubt`."""
        host, port = self._relays[relay]
        dotted = False
        try:
            session = connections.get(relay, host, port)
            for code, _ in (session.mail(self._sender, [f"size={len(message)}"]), session.rcpt(self._recipient)):
                if code != 250:
                    session.rset()
                    return "refused"
            if session.docmd("DATA")[0] != 354:
                session.rset()
                return "refused"
            dotted = True
            session.send(stuff(message))
            code, _ = session.getreply()
        except (OSError, smtplib.SMTPException):
            connections.drop(relay)
            return "doubt" if dotted else "refused"
        return "accepted" if code == 250 else "refused"

    def _note(self, submission: Submission) -> None:
        with self._lock:
            self._submissions[submission.message_id] = submission


def stuff(message: bytes) -> bytes:
    """Mail data as it goes on the wire: dots stuffed, final dot line added (RFC 5321 section 4.5.2)."""
    stuffed = message.replace(b"\r\n.", b"\r\n..")
    if stuffed.startswith(b"."):
        stuffed = b"." + stuffed
    return stuffed + (b".\r\n" if stuffed.endswith(b"\r\n") else b"\r\n.\r\n")


def unanswered(submissions: Sequence[Submission]) -> list[str]:
    """Ids that no relay answered 250."""
    return [submission.message_id for submission in submissions if submission.accepted_at is None]
