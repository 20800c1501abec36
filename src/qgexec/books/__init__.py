"""What is on disk of a run: its directory, the journal and segments, who holds it and what it tells."""
