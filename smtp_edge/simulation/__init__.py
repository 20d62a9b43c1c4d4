"""A cluster in virtual time: the real gossip machines on a modelled network.

    from smtp_edge.simulation import GossipWorld

    world = GossipWorld.converged(100, seed=1)
    world.kill(world.nodes[3])
    world.run(2.0)
    assert all(world.knows_dead(node, world.nodes[3]) for node in world.alive())

Same arguments, same run, to the byte. No clock, no socket, no thread. `loop` runs asyncio code in virtual time, and
`adapters` lets it gossip over such a world.
"""

from smtp_edge.simulation.adapters import SimulatedGossip, WorldClock
from smtp_edge.simulation.gossip import GossipWorld
from smtp_edge.simulation.loop import VirtualTimeLoop, run
from smtp_edge.simulation.network import Network

__all__ = ["GossipWorld", "Network", "SimulatedGossip", "VirtualTimeLoop", "WorldClock", "run"]
