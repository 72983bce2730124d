"""The coordinator's machine: events in, effects out; no clock, no files, no threads, no wire."""
