"""SMTP in: listeners, sessions, and the rules of who may do what. The way out is `smtp_edge.client`."""
