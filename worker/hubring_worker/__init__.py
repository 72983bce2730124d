"""What lives in the training process: session, hub client, loader, optimizer wrapper."""
