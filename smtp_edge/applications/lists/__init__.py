"""Mailing lists: who is on them, what may be posted, commands by mail, bounces (`sink.py` says how to set them up)."""
