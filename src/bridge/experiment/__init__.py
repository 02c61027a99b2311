"""The commands `evaluate` and `optimize` of the command line: a program, its examples and a metric, from a file."""
