"""The PipelineTasks of the demonstration reduction, one module each."""
