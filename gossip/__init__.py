"""Floor 1: how nodes share what they measure.

A link-state database whose records only their origin issues, versions and signs; its dissemination over one stream per
pair of nodes; and the detection of lost sessions. The protocol is a sans-IO machine (`gossip.machine`);
`gossip.service` is its grpc.aio shell. Nothing here knows SMTP or routing.
"""
