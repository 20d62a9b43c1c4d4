"""Sinks: one small API for routing, scanners, lists, stores and commands. `smtp_edge.sinks.api` is the public part."""
