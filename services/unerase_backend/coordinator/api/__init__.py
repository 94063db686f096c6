"""What callers reach: the gRPC server, its services, and the limits on their calls."""
