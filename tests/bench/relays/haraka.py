"""Haraka as a contender: a plugin of three hooks takes all mail and names the next hop; a process for each core.

`npm install --prefix .venv/peers/npm --ignore-scripts Haraka@3` puts it where it is found.
"""

from __future__ import annotations

import shutil

from tests.bench.relays.contender import HOSTNAME, Contender, Place
from tests.conftest import PEERS

PACKAGE = PEERS / "npm" / "node_modules" / "Haraka"
OUTBOUND_MAX = 100
PLUGIN = """\
exports.hook_mail = (next) => next(OK);
exports.hook_rcpt = (next, connection) => { connection.relaying = true; next(OK); };
exports.hook_get_mx = (next) => next(OK, { priority: 0, exchange: '127.0.0.1', port: %d });
"""


def missing() -> str:
    """Why it cannot take part; empty if it can."""
    if shutil.which("node") is None:
        return "needs node"
    return "" if PACKAGE.is_dir() else "needs Haraka (npm install --prefix .venv/peers/npm --ignore-scripts Haraka@3)"


def prepare(place: Place, *, cluster: bool) -> list[str]:
    """Its own configuration with ours in it; the command."""
    configuration = place.folder / "config"
    shutil.copytree(PACKAGE / "config", configuration)
    files = {
        "smtp.ini": f"listen=127.0.0.1:{place.port}\n" + ("nodes=cpus\n" if cluster else ""),
        "me": HOSTNAME,
        "plugins": "sink\n",
        "loglevel": "LOGWARN",
        "log.ini": "[main]\nlevel=warn\n",
        "outbound.ini": f"enable_tls=false\nconcurrency_max={OUTBOUND_MAX}\n",
    }
    for name, text in files.items():
        (configuration / name).write_text(text)
    for name in ("plugins", "queue"):
        (place.folder / name).mkdir()
    (place.folder / "plugins" / "sink.js").write_text(PLUGIN % place.sink)
    return ["node", str(PACKAGE / "bin" / "haraka"), "-c", str(place.folder)]


HARAKA = Contender("haraka", missing, lambda place: prepare(place, cluster=False), tls=False)
HARAKA_CLUSTER = Contender("haraka-cluster", missing, lambda place: prepare(place, cluster=True), tls=False)
