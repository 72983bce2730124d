"""The page of a run: what it shows, how it is fed, and the file that it leaves behind."""
