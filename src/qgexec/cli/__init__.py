"""The command line: options, progress and exit codes. All it does can be done from Python."""
