"""How tensor bytes travel between a worker and a shard: one contract, several roads."""
