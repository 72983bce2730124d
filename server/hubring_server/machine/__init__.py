"""The shard's machine: pure. No grpc, no torch, no threads, no clock."""
