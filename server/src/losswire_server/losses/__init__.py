"""The numerics: knows torch, and nothing of gRPC."""
