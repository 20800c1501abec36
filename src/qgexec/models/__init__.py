"""Execution models: how and where quanta run. Each owns one way; none knows registry, retries or reports."""
