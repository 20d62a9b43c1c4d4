r"""Dialogues as text: what a client says, what is answered, to the letter, and what was accepted in the end. Pure.

    # One or more lines of comment: the claim.
    # rfc: 5321 4.1.4a                    what of tests/requirements it shows, if anything
    @ relay_domains = ["here.test"]       settings, in TOML, before the first step

    C: MAIL FROM:<sue@here.test>          a line of the client; CRLF is added
    C: RCPT TO:<ann@here.test>            lines without anything between them leave in one segment,
                                          an empty line cuts it; nothing waits for anything but `S:`
    S: 250 2.1.0 Ok                       a line of the server, exactly
    S: 250 2.1.5 Ok
    S*3: 500 5.5.1 ...                    three of them; `...` at the end stands for anything
    B: Subject: x\r\n\r\nbare\n\x00       bytes: escapes \r \n \t \\ \xHH, and no CRLF added
    S: (closed)                           the server hangs up without another word
    -- hello                              the greeting, EHLO client.test and its answer, unlooked at
    -- ehlo                               EHLO and its answer alone, after TLS
    -- tls                                a handshake, after STARTTLS or at the beginning
    -- eof                                the client closes its side, and still reads
    -- hang up                            the client is gone
    -- wait 0.05                          what has to take time (limits of time; nothing else)
    M: count 1                            messages accepted so far
    M: sender sue@here.test               of the last one; see `stage.FACTS` for the words
    M: data Subject: x\r\n                with escapes

`{a*5000}` is repeated text, `{b64 \0sue\0secret}` is base64 of it (with escapes). A dialogue that
does not end in `(closed)` or `hang up` is ended by QUIT, and whatever the server has said beyond it is a failure.

Settings are those of [[listener]] (`limits.hops_max` is one of its limits), and beside them

    access       rules, as [[access]]
    sink         sinks, as [[sink]]; `tests.dialogs.toys:Toys` answers commands
    users        { name = "password" }; AUTH against a users file
    sender_map   lines of the senders file
    admission    what the queue says at MAIL, `452 4.3.1 text`
    answer       what the queue says to a message
    from         the client's address, on loopback
    mesh         true: the peers' listener, and a client with a certificate of the cluster
    whole        true: the segments are the point, do not cut them up

Each folder may have a `listener.toml` with settings for all its files; those of a file go over them.
"""

from __future__ import annotations

import base64
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_REPEAT = re.compile(r"\{([^{}]+)\*(\d+)\}")
_BASE64 = re.compile(r"\{b64 ([^{}]*)\}")
_ESCAPE = re.compile(r"\\(r|n|t|0|\\|x[0-9A-Fa-f]{2})")
_LETTERS = {"r": "\r", "n": "\n", "t": "\t", "0": "\0", "\\": "\\"}
_STEP = re.compile(r"(C|B|S\*(\d+)|S|M|--):? ?(.*)")


class ScriptError(ValueError):
    """A file is no dialogue; `str()` names the line."""


@dataclass(frozen=True, slots=True)
class Send:
    """The client says so; all of it in one write."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Hear:
    """The server says this line, or begins so if `open_end`; None: it hangs up."""

    line: str | None
    open_end: bool = False

    def fits(self, heard: str) -> bool:
        """`heard` without its line end."""
        expected = self.line or ""
        return heard.startswith(expected) if self.open_end else heard == expected


@dataclass(frozen=True, slots=True)
class Act:
    """`hello`, `ehlo`, `tls`, `eof`, `hang up`, `wait`."""

    what: str
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Check:
    """Of what was accepted."""

    fact: str
    value: bytes


Step = Send | Hear | Act | Check


@dataclass(frozen=True, slots=True)
class Script:
    """A dialogue. Each step with its line in the file."""

    path: Path
    settings: dict[str, Any]
    steps: tuple[tuple[int, Step], ...]

    @property
    def ends_itself(self) -> bool:
        """Nothing is to be said after it."""
        return any(step in (Hear(None), Act("hang up")) for _, step in self.steps)


def read_script(path: Path) -> Script:
    """Read a file, with its folder's settings below its own. ScriptError."""
    common = path.parent / "listener.toml"
    settings = tomllib.loads(common.read_text("utf-8")) if common.exists() else {}
    header: list[str] = []
    steps: list[tuple[int, Step]] = []
    together = False
    for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
        if line.startswith("@ "):
            header.append(line[2:])
        elif not line:
            together = False
        elif not line.startswith("#"):
            together = _add(steps, number, line, together, path)
    if not steps:
        raise ScriptError(f"{path}: no steps")
    return Script(path, _merge(settings, tomllib.loads("\n".join(header))), tuple(steps))


def _merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Tables are merged one deep: `limits`."""
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        merged[key] = {**old, **value} if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def _add(steps: list[tuple[int, Step]], number: int, line: str, together: bool, path: Path) -> bool:
    """Append the line's steps; True if what the client says next belongs to the same segment."""
    match = _STEP.fullmatch(line)
    if match is None:
        raise ScriptError(f"{path}, line {number}: {line!r}")
    kind, count, text = match.groups()
    if kind in ("C", "B"):
        said = _expand(text).encode() + b"\r\n" if kind == "C" else unescape(_expand(text))
        last = steps[-1][1] if steps else None
        if together and isinstance(last, Send):
            steps[-1] = steps[-1][0], Send(last.data + said)
        else:
            steps.append((number, Send(said)))
        return True
    if kind == "--":
        what, _, seconds = text.partition("wait ")
        steps.append((number, Act("wait", float(seconds)) if seconds else Act(what)))
    elif kind == "M":
        fact, _, value = text.partition(" ")
        steps.append((number, Check(fact, unescape(_expand(value)))))
    else:
        steps.extend((number, _hear(_expand(text))) for _ in range(int(count or 1)))
    return False


def _hear(text: str) -> Hear:
    if text == "(closed)":
        return Hear(None)
    return Hear(text.removesuffix("..."), open_end=True) if text.endswith("...") else Hear(text)


def _expand(text: str) -> str:
    text = _BASE64.sub(lambda match: base64.b64encode(unescape(match[1])).decode(), text)
    return _REPEAT.sub(lambda match: match[1] * int(match[2]), text)


def unescape(text: str) -> bytes:
    r"""Escapes to bytes, everything else as UTF-8."""
    pieces: list[bytes] = []
    end = 0
    for match in _ESCAPE.finditer(text):
        pieces.append(text[end : match.start()].encode())
        code = match[1]
        pieces.append(bytes([int(code[1:], 16)]) if code.startswith("x") else _LETTERS[code].encode())
        end = match.end()
    return b"".join([*pieces, text[end:].encode()])
