"""What is shown: readers of the journal."""
