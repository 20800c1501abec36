"""Execution models: how and where quanta run. Each owns one way, and never knows registry, retries or reports."""
