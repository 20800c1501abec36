"""What may run now: the graph as numbers, states, and the policy about failures; no I/O and no clock."""
