"""One parameter server: shards, their logs, their optimizers."""
