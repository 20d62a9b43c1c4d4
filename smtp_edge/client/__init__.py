"""SMTP out: targets, connections, pools, MX resolution, TLS policy."""
