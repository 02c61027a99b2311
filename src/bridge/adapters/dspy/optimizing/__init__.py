"""What the optimizers of `optimizers.py` need to run in a worker, and what becomes of their results."""
