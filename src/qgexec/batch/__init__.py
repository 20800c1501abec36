"""What a run leaves to a batch system: rounds of jobs, their files, and what became of them."""
