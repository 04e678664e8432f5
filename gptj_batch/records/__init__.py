"""Records: Parquet and Arrow files in, units of rows, an output folder that is whole or marked as unfinished."""
