"""Floor 3: SMTP in and out, the durable queue, sinks, the admin service; and, on top, the programs that wire it all."""
