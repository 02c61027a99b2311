"""The commands `evaluate`, `optimize` and `map` of the command line: a program, its rows and a metric, from files."""
