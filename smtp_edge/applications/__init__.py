"""The sinks that come along, on exactly the API that a user gets: `smtp_edge.sinks.api`, and nothing of the node."""
