"""The durable queue: entries, their store, retry times and the dispatcher that attempts them."""
