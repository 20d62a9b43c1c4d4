"""An HTTP service of tests that judges mail, as a process of its own: `python -m tests.e2e.hook PORT LEDGER MODE`.

It writes each question down (a line of JSON) and answers by the subject; MODE `mad` answers octets that are nothing.
"""

from __future__ import annotations

import base64
import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


def judge(asked: dict[str, Any]) -> dict[str, Any]:
    """By stage, recipient and subject."""
    stage, to = asked["context"]["stage"], (asked.get("envelope") or {}).get("to") or []
    if stage == "RCPT" and to and to[-1]["address"].startswith("nobody@"):
        return {"action": "reject", "response": {"status": 550, "enhancedStatus": "5.1.1", "message": "nobody here"}}
    if stage == "DATA":
        if b"Subject: spam" in base64.b64decode(asked["message"]["raw"]):
            return {"action": "reject", "response": {"status": 554, "enhancedStatus": "5.7.1", "message": "no spam"}}
        return {
            "action": "accept",
            "modifications": [
                {"type": "addHeader", "name": "X-Checked", "value": "yes"},
                {"type": "addRecipient", "value": "bob@demo.test"},
            ],
        }
    return {"action": "accept"}


def serve(port: int, ledger: Path, mode: str) -> None:
    """Until it is killed."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            asked = json.loads(self._read())
            with ledger.open("a") as file:
                file.write(json.dumps({"stage": asked["context"]["stage"]}) + "\n")
            body = b"\xff\0{not json" * 100 if mode == "mad" else json.dumps(judge(asked)).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def _read(self) -> bytes:
            if "chunked" not in self.headers.get("Transfer-Encoding", ""):
                return self.rfile.read(int(self.headers.get("Content-Length", "0")))
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return body

        def log_message(self, format: str, *args: object) -> None:
            pass

    ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()


if __name__ == "__main__":
    serve(int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
