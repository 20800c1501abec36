"""Takes outputs into the registry while quanta run, in a process of its own."""
