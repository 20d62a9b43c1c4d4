"""Floor 3: SMTP in and out, the durable queue, sinks, admin; and above them, `node`, `demo` and `cli`, which wire."""

__version__ = "0.1.0"
