"""`python -m hubring` is the command `hubring`."""

from hubring.cli import main

main()
