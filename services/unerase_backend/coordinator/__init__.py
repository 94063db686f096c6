"""The coordinator: plan, durable workflow, gRPC server, metrics."""
