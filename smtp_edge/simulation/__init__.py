"""A cluster in virtual time, for tests of failover: real engines, queues and gossip machines on a modelled network.

    from smtp_edge.simulation import Mesh

    with Mesh(seed=1) as mesh:
        mesh.host("s1", capacity_mps=40)
        mesh.host("s2", capacity_mps=80)
        mesh.relay("a", exits=["s1", "s2"])
        mesh.load("a", rate_mps=50)
        mesh.kill("s2", at=10.0)
        mesh.run(20)
        assert mesh.lost == 0
        assert mesh.reroute_s < 1

`GossipWorld` is the gossip alone, for thousands of nodes; `loop` runs asyncio code in virtual time, and `adapters` lets
it gossip over such a world. Same arguments, same run, to the byte. No clock, no socket, no thread.
"""

from smtp_edge.simulation.adapters import SimulatedGossip, WorldClock
from smtp_edge.simulation.gossip import GossipWorld
from smtp_edge.simulation.loop import VirtualTimeLoop, run
from smtp_edge.simulation.mesh import Mesh, MeshError
from smtp_edge.simulation.network import Network

__all__ = ["GossipWorld", "Mesh", "MeshError", "Network", "SimulatedGossip", "VirtualTimeLoop", "WorldClock", "run"]
