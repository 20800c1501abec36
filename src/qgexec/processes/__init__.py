"""Processes of this host: forked, watched, ended; knows nothing of quanta."""
