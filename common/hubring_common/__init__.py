"""What more than one service says or does. Imports no service."""
