"""Prints a line, then fails to end: what it said must be seen while it runs."""

import time

import hubring

run = hubring.init()
print(f"{run.worker} speaks")
time.sleep(600)
