"""The interface to callers: the gRPC server, its services, and the limits on their calls."""
