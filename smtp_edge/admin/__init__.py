"""The admin service: gRPC with health and reflection, on a Unix socket, loopback, or under mutual TLS."""
