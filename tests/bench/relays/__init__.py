"""Parts of the benches that put relays between a generator and a sink of mail (`bench relay` and its kin)."""
