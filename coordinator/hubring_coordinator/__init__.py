"""The coordinator: members, shard map, data tasks, the run's life. It dials nobody."""
