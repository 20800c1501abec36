"""The command line: options, progress and exit codes. All it does can be done from Python."""

EXIT_FAILED = 1
"""Some quanta failed or were blocked."""

EXIT_BAD_USE = 2
"""Wrong use, bad input, or a run that broke off."""

EXIT_TRY_AGAIN = 75
"""Another try of a batch job has something to do: ``EX_TEMPFAIL`` of sysexits.h."""

EXIT_INTERRUPTED = 130
"""Ctrl-C, SIGTERM or SIGHUP; what a shell reports for SIGINT."""
