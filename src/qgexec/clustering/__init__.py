"""Which quanta go into one batch job: rules, and the clusters that they make of a plan; no I/O."""
