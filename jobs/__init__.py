"""Entry points: the command line, `jobs/run.py` for `ray job submit`, benchmarks, the maker of the demo model."""
