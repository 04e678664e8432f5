"""Pipelines: a job's configuration, and the one spine that runs it on Ray Data."""
