"""Floor 2: which next hop a message takes, and why. Pure throughout.

No clock, no socket, no logging, no global randomness: `now` (monotonic seconds) and `rng` are arguments. The edge tells
the engine what happened (`RoutingEngine.record`), gossip tells it what others saw (`RoutingEngine.apply`), and the
engine answers with a decision that names every candidate and the rule that decided.
"""
