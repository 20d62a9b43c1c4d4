"""The words before the first MAIL: EHLO (HELO where that is unknown, LHLO for LMTP), STARTTLS, AUTH.

aiosmtplib has these too, and is not used for them: it goes on after a STARTTLS reply with more behind it, has no LHLO
and does not fall back to HELO. Its parsers and AUTH encoders are.
"""

from __future__ import annotations

from aiosmtplib.auth import auth_crammd5_verify, auth_login_encode, auth_plain_encode
from aiosmtplib.errors import SMTPAuthenticationError
from aiosmtplib.esmtp import parse_esmtp_extensions

from smtp_edge.client.replies import HELLO_TEXT_MAX, TEXT_MAX, ReplyStream
from smtp_edge.reply import Reply

EXTENSIONS_MAX = 100
UNKNOWN_COMMAND = frozenset({500, 501, 502, 504, 550, 554})
"""Replies to EHLO after which HELO is tried (RFC 5321 section 3.2, and what old servers say)."""


class Refused(Exception):
    """The remote answered a step with a refusal, or with something (`own`) that we cannot go on with."""

    def __init__(self, stage: str, reply: Reply, *, own: bool = False) -> None:
        super().__init__(f"{stage}: {reply}")
        self.stage, self.reply, self.own = stage, reply, own


async def say_hello(stream: ReplyStream, hostname: str, *, lmtp: bool) -> dict[str, str]:
    """Introduce ourselves; the extensions offered, keywords in lower case. Refused."""
    verb = "LHLO" if lmtp else "EHLO"
    stream.text_max = HELLO_TEXT_MAX
    reply = await _ask(stream, f"{verb} {hostname}")
    stream.text_max = TEXT_MAX
    if reply.code == 250:
        words, _ = parse_esmtp_extensions(reply.text)
        return dict(list(words.items())[:EXTENSIONS_MAX])
    if lmtp or reply.code not in UNKNOWN_COMMAND:
        raise Refused(verb, reply)
    reply = await _ask(stream, f"HELO {hostname}")
    if reply.code != 250:
        raise Refused("HELO", reply)
    return {}


async def ask_for_tls(stream: ReplyStream) -> None:
    """STARTTLS up to its reply. Refused."""
    reply = await _ask(stream, "STARTTLS")
    if reply.code != 220:
        raise Refused("STARTTLS", reply)


async def log_in(stream: ReplyStream, offered: str, user: str, password: str) -> None:
    """AUTH by the first of PLAIN, LOGIN, CRAM-MD5 that is offered (the session is under TLS). Refused."""
    mechanisms = offered.upper().split()
    if "PLAIN" in mechanisms:
        reply = await _ask(stream, f"AUTH PLAIN {auth_plain_encode(user, password).decode('ascii')}")
    elif "LOGIN" in mechanisms:
        name, secret = auth_login_encode(user, password)
        reply = await _answer(stream, "AUTH LOGIN", name, secret)
    elif "CRAM-MD5" in mechanisms:
        reply = await _ask(stream, "AUTH CRAM-MD5")
        if reply.code == 334:
            try:
                reply = await _ask(stream, auth_crammd5_verify(user, password, reply.text).decode("ascii"))
            except SMTPAuthenticationError:
                raise Refused("AUTH", Reply(535, "the challenge makes no sense", "5.7.0"), own=True) from None
    else:
        raise Refused("AUTH", Reply(504, "the host offers no mechanism that we have", "5.5.4"), own=True)
    if reply.code != 235:
        raise Refused("AUTH", reply)


async def _answer(stream: ReplyStream, command: str, *answers: bytes) -> Reply:
    """A command and what its challenges are answered with."""
    reply = await _ask(stream, command)
    for answer in answers:
        if reply.code != 334:
            break
        reply = await _ask(stream, answer.decode("ascii"))
    return reply


async def _ask(stream: ReplyStream, line: str) -> Reply:
    stream.write(f"{line}\r\n".encode())
    return await stream.read_reply()
