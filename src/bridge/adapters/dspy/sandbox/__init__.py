"""Sandboxes for code that models write.

Monty is an interpreter of a part of Python, without files, network and environment, in a process of its own. The other
one, Pyodide in Deno, loads code from the network.
"""
