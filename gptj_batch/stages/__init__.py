"""Where the data side and the compute side meet: plain classes that take a table and return a table. No Ray."""
