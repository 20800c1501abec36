"""All that touches the LSST middleware: graph files, butlers, the registry. Knows nothing of processes or plans of work."""
