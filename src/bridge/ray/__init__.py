"""A pool on the nodes of a Ray cluster: one actor per node holds that node's pool.

Importing this package needs Ray, which the extra `ray` installs.
"""

try:
    import ray  # noqa: F401
except ModuleNotFoundError as error:
    if error.name != "ray":
        raise
    raise ImportError("bridge.RayPool needs Ray: pip install 'dspex-bridge[ray]'") from None
