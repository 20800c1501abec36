"""What qgexec costs, measured beside upstream's own executors on the same machine in the same hour."""
