"""Coverage-guided fuzzing of the inbound session (`SessionOrdeal`): commands, mail data, AUTH, XCLIENT, cut anywhere.

    python3 deploy/run.py bench session_fuzz [--minutes 10] [--keep FOLDER]
    python3 deploy/run.py bench session_fuzz --replay FILE

The corpus begins with what the dialogues of tests/dialogs say. How a run goes, and what becomes of findings:
tests/bench/lab/fuzzing.py.
"""

from __future__ import annotations

import asyncio
from functools import lru_cache
from pathlib import Path

from tests.bench.lab.fuzzing import Target, main

BYTES_MAX = 6000
"""More than the largest message that the ordeal's session takes."""
DIALOGS = Path(__file__).resolve().parents[1] / "dialogs"
WORDS = (
    *("HELO x\r\n", "EHLO x\r\n", "MAIL FROM:<", "RCPT TO:<", "DATA\r\n", "BDAT ", " LAST\r\n", "RSET\r\n", "NOOP\r\n"),
    *("AUTH PLAIN ", "AUTH LOGIN\r\n", "AUTH PLAIN AHN1ZQBzZWNyZXQ=\r\n", "STARTTLS\r\n", "XCLIENT ", "XFORWARD "),
    *("ADDR=", "NAME=", "LOGIN=sue", "PROTO=ESMTP", "HELO=", "IDENT=", "SOURCE=", "PORT=", "[UNAVAILABLE]"),
    *(" SIZE=", " BODY=BINARYMIME", " BODY=8BITMIME", " SMTPUTF8", " NOTIFY=", " ORCPT=rfc822;", " ENVID=", " RET="),
    *(" REQUIRETLS", " XTOKEN=", " XTRACE=", " XAGE=", " AUTH=<>", "a@here.test>", "a@nowhere.test>", "refused.test"),
    *(
        "\r\n.\r\n",
        "\r\n",
        "\n",
        "\r",
        "\n.\r\n",
        "\r.\r",
        "..",
        "\xfd",
        "\x00",
        "Received: x\r\n",
        "VRFY x\r\n",
        "QUIT\r\n",
    ),
)


@lru_cache(maxsize=1)
def loop() -> asyncio.AbstractEventLoop:
    """One for all inputs: to make one costs more than an input."""
    return asyncio.new_event_loop()


def one_input(data: bytes) -> None:
    """What is to hold for any bytes."""
    from tests.unit.smtp_edge.server.ordeal import run

    run(loop(), data)


def seeds(folder: Path) -> int:
    """What clients say in the dialogues, once in a plain session and once in one with everything."""
    from tests.dialogs.script import Act, Send, read_script
    from tests.unit.smtp_edge.server.ordeal import CUT, LENIENT, TLS, TRUSTED

    number = 0
    for path in sorted(DIALOGS.rglob("*.dialog")):
        said: list[bytes] = []
        for _, step in read_script(path).steps:
            if isinstance(step, Send):
                said.append(step.data)
            elif isinstance(step, Act) and step.what in ("hello", "ehlo"):
                said.append(b"EHLO client.test\r\n")
        whole = CUT.join(said).replace(b"example.org", b"here.test")[:BYTES_MAX]
        for flags in (0, TLS | LENIENT | TRUSTED):
            (folder / f"dialog-{number}").write_bytes(bytes([flags]) + whole)
            number += 1
    return number


TARGET = Target(
    name="session_fuzz",
    one_input=one_input,
    seeds=seeds,
    instrumented=("smtp_edge.server",),
    modules=("smtp_edge.server.session", "smtp_edge.server.listener", "tests.unit.smtp_edge.server.ordeal"),
    bytes_max=BYTES_MAX,
    holds="no bug, no hang, no text that is not ours, nothing accepted against the rules, nothing left behind",
    words=WORDS,
)

if __name__ == "__main__":
    main(TARGET, __doc__)
