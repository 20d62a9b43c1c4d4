"""An HTTP endpoint for the webhook, as a process of its own: checks each signature and writes down what it accepts.

    python -m tests.e2e.endpoint --port 0 --ledger FILE --secret FILE

Shares no code with the sink. The path says what it answers: `/ok` 204, `/409` that status, `/redirect` 307 to `/ok`,
`/wait` 503 with Retry-After: 1 once for each key and 204 then, `/garbage` what is no HTTP, `/endless` a body without
end.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import email
import hashlib
import hmac
import json
import os
from pathlib import Path

from aiohttp import web


class Endpoint:
    """Appends one line of JSON for each message before it answers."""

    def __init__(self, ledger: Path, secret: bytes) -> None:
        self.file = os.open(ledger, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        self.secret = secret
        self.asked: set[str] = set()

    async def take(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        path = request.path.strip("/")
        self.note(request, body, path)
        if path == "wait" and (key := request.headers["Idempotency-Key"]) not in self.asked:
            self.asked.add(key)
            return web.Response(status=503, headers={"Retry-After": "1"})
        if path == "redirect":
            return web.Response(status=307, headers={"Location": "/ok"})
        if path == "garbage":
            assert request.transport is not None
            request.transport.write(b"\xff\x00 what?\r\n" * 100)
            request.transport.close()
        if path == "endless":
            answer = web.StreamResponse(status=200)
            await answer.prepare(request)
            while True:
                await answer.write(b"x" * 65536)
        return web.Response(status=int(path) if path.isdecimal() else 204, text="because\nof more")

    def note(self, request: web.Request, body: bytes, path: str) -> None:
        head = request.headers
        signed = f"{head['Webhook-Id']}.{head['Webhook-Timestamp']}.".encode() + body
        digest = base64.b64encode(hmac.new(self.secret, signed, hashlib.sha256).digest()).decode()
        whole = b"Content-Type: " + head["Content-Type"].encode() + b"\r\n\r\n" + body
        envelope, message = email.message_from_bytes(whole).get_payload()
        raw = body.partition(b"message/rfc822\r\n\r\n")[2].rpartition(b"\r\n--")[0]
        line = {
            "path": path,
            "genuine": hmac.compare_digest(head["Webhook-Signature"], f"v1,{digest}"),
            "key": head["Idempotency-Key"],
            "at": int(head["Webhook-Timestamp"]),
            "envelope": json.loads(envelope.get_payload()),  # type: ignore[union-attr, arg-type]
            "type": message.get_content_type(),  # type: ignore[union-attr]
            "sha256": hashlib.sha256(raw).hexdigest(),
            "body_sha256": hashlib.sha256(raw.partition(b"\r\n\r\n")[2]).hexdigest(),
            "subject": email.message_from_bytes(raw)["Subject"],
        }
        os.write(self.file, json.dumps(line).encode() + b"\n")


async def serve(port: int, ledger: Path, secret: bytes) -> None:
    application = web.Application(client_max_size=2**26)
    application.router.add_post("/{path:.*}", Endpoint(ledger, secret).take)
    runner = web.AppRunner(application)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    await asyncio.Event().wait()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--ledger", type=Path, required=True)
    parser.add_argument("--secret", type=Path, required=True)
    given = parser.parse_args()
    asyncio.run(serve(given.port, given.ledger, given.secret.read_bytes()))


if __name__ == "__main__":
    main()
