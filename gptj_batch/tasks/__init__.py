"""The tasks: each turns records into requests, and results into columns."""
