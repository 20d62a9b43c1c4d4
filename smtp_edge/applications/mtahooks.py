"""MTA hooks: an HTTP service is asked about sessions and messages, as Stalwart's MTA hooks (protocol version 1) ask.

    [[sink]]
    use = "mtahooks"
    rule = "listener=smtp"
    timeout = "20s"
    with = { url = "https://filter.example.org/hook", stages = ["rcpt", "data"], auth_file = "/etc/smtpmesh/hook.auth" }

A POST of JSON: `context` (stage, client, sasl, tls, server, protocol), `envelope` (from, to), at the stage DATA also
`message`: `headers` as [name, value] pairs, `contents` (the body as text, for those who can do with that), `size`, and
`raw`, all of it in base64, which Stalwart does not send. The answer:

    {"action": "accept" | "reject" | "discard" | "quarantine",
     "response": {"status": 550, "enhancedStatus": "5.7.1", "message": "no", "disconnect": false},
     "modifications": [{"type": "addHeader", "name": "X-Checked", "value": "yes"}, ...]}

A `reject` with a status of 4yz is for now. Modifications are for the stage DATA: addHeader, insertHeader, changeHeader,
deleteHeader (`index` counts fields of that name from 1; insertHeader counts all fields from 0), addRecipient,
deleteRecipient, changeFrom; parameters are ignored, and so is what an answer has beside these. Answers that are no such
JSON, larger than `ANSWER_BYTES_MAX`, other statuses than 200, and no answer in time are failures: the binding's
`on_failure`. Redirects are not followed, proxies of the environment not used.

`auth_file` holds the value of the Authorization field, as `Bearer SECRET`. `contents = false` leaves the body out
(`raw` and `contents`): a hook that looks at headers alone is far cheaper. https is verified by the system's
authorities, or `ca_file`; http is for loopback only.
"""

from __future__ import annotations

import base64
import json
import ssl
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import aiohttp
from yarl import URL

from smtp_edge.envelope import Client, Envelope, Recipient
from smtp_edge.sinks.api import Discard, Disconnect, Message, Quarantine, Reject, Sink, TempFail, Verdict
from smtp_edge.sinks.fields import Field, make_field

STAGES = ("connect", "ehlo", "auth", "mail", "rcpt", "data")
ANSWER_BYTES_MAX = 1024 * 1024
MODIFICATIONS_MAX = 1000
TEXT_MAX = 400
KEEPALIVE_S = 2.0
"""Shorter than servers have it: a POST into a connection that is being closed has no answer."""
BASE64_BYTES = 57 * 1024
"""Of the message in one piece of the body; a multiple of three, so that pieces join without padding."""


class HookError(Exception):
    """The answer cannot be used; `str()` says why."""


class MTAHooks(Sink):
    """See the module. ValueError for settings that mean nothing, OSError for files that cannot be read."""

    def __init__(
        self,
        url: str,
        stages: Sequence[str] = ("data",),
        auth_file: str = "",
        ca_file: str = "",
        contents: bool = True,
    ) -> None:
        unknown = [stage for stage in stages if stage not in STAGES]
        if isinstance(stages, str) or unknown or not stages:
            raise ValueError(f"stages is a list of: {', '.join(STAGES)}")
        self._url, self._contents = _parse_url(url), contents
        self.events = ["helo" if stage == "ehlo" else stage for stage in stages]
        self._header = {"Content-Type": "application/json", "User-Agent": "smtpmesh"}
        if auth_file:
            self._header["Authorization"] = _read_auth(Path(auth_file))
        self._tls = ssl.create_default_context(cafile=ca_file or None)
        self._session: aiohttp.ClientSession | None = None

    async def start(self) -> None:
        """Nothing is connected yet."""
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, ssl=self._tls, keepalive_timeout=KEEPALIVE_S),
            timeout=aiohttp.ClientTimeout(total=None),  # the binding's counts
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
        )

    async def stop(self) -> None:
        """Close what is open."""
        if self._session is not None:
            await self._session.close()

    async def connect(self, client: Client) -> Verdict | None:
        """Stage CONNECT."""
        return await self._ask("connect", client)

    async def helo(self, client: Client) -> Verdict | None:
        """Stage EHLO."""
        return await self._ask("ehlo", client)

    async def auth(self, client: Client) -> Verdict | None:
        """Stage AUTH."""
        return await self._ask("auth", client)

    async def mail(self, client: Client, envelope: Envelope) -> Verdict | None:
        """Stage MAIL."""
        return await self._ask("mail", client, envelope)

    async def rcpt(self, client: Client, envelope: Envelope, recipient: Recipient) -> Verdict | None:
        """Stage RCPT: the last one of `to` is asked about."""
        return await self._ask("rcpt", client, envelope)

    async def data(self, message: Message) -> Verdict | None:
        """Stage DATA. HookError."""
        said = describe("data", message.client, self.node.hostname, message.envelope)
        answer = await self._post(_build_body(said, message, contents=self._contents))
        modify(message, answer.modifications)
        return answer.verdict

    async def _ask(self, stage: str, client: Client, envelope: Envelope | None = None) -> Verdict | None:
        said = describe(stage, client, self.node.hostname, envelope)
        return (await self._post(_encode(said))).verdict

    async def _post(self, body: bytes | AsyncIterator[bytes]) -> Answer:
        assert self._session is not None
        async with self._session.post(self._url, data=body, headers=self._header, allow_redirects=False) as answer:
            if answer.status != 200:
                raise HookError(f"the hook answered {answer.status}")
            text = b""
            async for chunk in answer.content.iter_chunked(65536):
                text += chunk
                if len(text) > ANSWER_BYTES_MAX:
                    raise HookError(f"the answer is larger than {ANSWER_BYTES_MAX} bytes")
        return parse_answer(text)


# -- what is asked -----------------------------------------------------------------------------------------------------


def describe(stage: str, client: Client, hostname: str, envelope: Envelope | None = None) -> dict[str, Any]:
    """Context and envelope."""
    version, _, cipher = client.tls.partition(" ")
    context: dict[str, Any] = {
        "stage": stage.upper(),
        "client": {"ip": client.address, "port": client.port, "ptr": client.name or None, "helo": client.helo or None},
        "sasl": {"login": client.user} if client.user else None,
        "tls": {"version": version, "cipher": cipher} if client.tls else None,
        "server": {"name": hostname},
        "protocol": {"version": 1},
    }
    said: dict[str, Any] = {"context": {key: value for key, value in context.items() if value is not None}}
    if envelope is not None:
        said["envelope"] = {
            "from": {"address": envelope.sender},
            "to": [{"address": recipient.address} for recipient in envelope.recipients],
        }
    return said


async def _build_body(said: dict[str, Any], message: Message, *, contents: bool) -> AsyncIterator[bytes]:
    """In pieces: the message is never whole in memory."""
    part: dict[str, Any] = {
        "headers": [[_text(name), _text(value)] for name, value in message.headers],
        "serverHeaders": [],
        "size": message.size_bytes,
    }
    if not contents:
        yield _encode({**said, "message": part})
        return
    opening = _encode({**said, "message": part})
    yield opening[:-2] + b',"contents":"'
    async for chunk in message.body():
        yield json.dumps(chunk.decode("latin-1") if not chunk.isascii() else chunk.decode("ascii"))[1:-1].encode()
    yield b'","raw":"'
    rest = b""
    async for chunk in message.content():
        rest += chunk
        whole = len(rest) - len(rest) % BASE64_BYTES
        if whole:
            yield base64.b64encode(rest[:whole])
            rest = rest[whole:]
    yield base64.b64encode(rest) + b'"}}'


def _encode(said: dict[str, Any]) -> bytes:
    return json.dumps(said, separators=(",", ":")).encode()


def _text(value: str) -> str:
    """JSON has no surrogates that stand for bytes."""
    return value.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


# -- what is answered --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Answer:
    """What the hook says."""

    verdict: Verdict | None
    modifications: tuple[dict[str, Any], ...] = ()


def parse_answer(text: bytes) -> Answer:
    """HookError for what is no answer."""
    try:
        said = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise HookError(f"the answer is no JSON: {error}") from None
    if not isinstance(said, dict):
        raise HookError("the answer is no JSON object")
    action, response = said.get("action"), said.get("response") or {}
    modifications = said.get("modifications") or []
    if not isinstance(response, dict) or not isinstance(modifications, list):
        raise HookError("response is no object, or modifications no list")
    if len(modifications) > MODIFICATIONS_MAX or not all(isinstance(item, dict) for item in modifications):
        raise HookError(f"modifications are not up to {MODIFICATIONS_MAX} objects")
    return Answer(_judge(action, response), tuple(modifications))


def _judge(action: object, response: dict[str, Any]) -> Verdict | None:
    text = str(response.get("message") or "refused by a hook")
    text = "".join(character if " " <= character <= "~" else "?" for character in text)[:TEXT_MAX]
    if response.get("disconnect") is True:
        return Disconnect(text)
    match action:
        case "accept":
            return None  # and the next sink is asked
        case "discard":
            return Discard()
        case "quarantine":
            return Quarantine(text)
        case "reject":
            code = response.get("status", 550)
            status = str(response.get("enhancedStatus") or "")
            try:
                if isinstance(code, int) and 400 <= code < 500:
                    return TempFail(text, code, status or "4.7.1")
                return Reject(text, code if isinstance(code, int) else 550, status or "5.7.1")
            except ValueError as error:
                raise HookError(f"response: {error}") from None
        case _:
            raise HookError(f"action is none of accept, discard, quarantine, reject: {str(action)[:40]!r}")


def modify(message: Message, modifications: Sequence[dict[str, Any]]) -> None:
    """In their order. HookError for one that makes no sense."""
    for item in modifications:
        kind = item.get("type")
        try:
            _modify(message, kind, item)
        except (ValueError, TypeError, KeyError) as error:
            raise HookError(f"modification {str(kind)[:40]!r}: {error}") from None


def _modify(message: Message, kind: object, item: dict[str, Any]) -> None:
    match kind:
        case "addHeader":
            message.add_header(_string(item, "name"), _value(item), last=True)
        case "insertHeader":
            index = _index(item, 0)
            inserted = make_field(_string(item, "name"), _value(item))
            message.fields = (*message.fields[:index], inserted, *message.fields[index:])
        case "changeHeader" | "deleteHeader":
            name = _string(item, "name")
            field = make_field(name, _value(item)) if kind == "changeHeader" else None
            message.fields = _replace(message.fields, name, _index(item, 1), field)
        case "addRecipient" | "addRcpt":
            message.add_recipient(_string(item, "value"))
        case "deleteRecipient" | "deleteRcpt":
            message.remove_recipient(_string(item, "value"))
        case "changeFrom":
            message.set_sender(_string(item, "value"))
        case _:
            raise ValueError("it is not known, or not possible here")


def _replace(fields: tuple[Field, ...], name: str, index: int, field: Field | None) -> tuple[Field, ...]:
    """The field number `index` (from 1) of a name; one that is not there is not missed."""
    places = [place for place, found in enumerate(fields) if found.is_named(name)]
    if not 1 <= index <= len(places):
        return fields
    place = places[index - 1]
    return (*fields[:place], *((field,) if field is not None else ()), *fields[place + 1 :])


def _string(item: dict[str, Any], key: str) -> str:
    value = item[key]
    if not isinstance(value, str):
        raise ValueError(f"{key} is no text")
    return value


def _value(item: dict[str, Any]) -> str:
    """As hooks write it: perhaps with its line end."""
    return _string(item, "value").strip(" \t\r\n")


def _index(item: dict[str, Any], least: int) -> int:
    index = item.get("index", least)
    if not isinstance(index, int) or isinstance(index, bool) or index < least:
        raise ValueError(f"index is no number from {least}")
    return index


# -- settings ----------------------------------------------------------------------------------------------------------


def _parse_url(text: str) -> URL:
    try:
        url = URL(text)
    except ValueError as error:
        raise ValueError(f"url = {text!r} is no URL: {error}") from None
    if url.scheme not in ("https", "http") or not url.host:
        raise ValueError(f"url = {text!r} is no https://host/path")
    if url.user or url.password:
        raise ValueError("url holds a user or a password: write them into auth_file")
    if url.scheme == "http" and not _is_loopback(url.host):
        raise ValueError(f"url: http is for loopback only, and {url.host} is not; write https")
    return url


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _read_auth(path: Path) -> str:
    text = path.read_text("utf-8").strip()
    if not text or not text.isprintable() or not text.isascii():
        raise ValueError(f"auth_file {path} does not hold one line of ASCII, as: Bearer SECRET")
    return text
