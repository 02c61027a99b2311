"""Keeps secrets out of what the worker writes, and decides which addresses may be sent API keys."""
