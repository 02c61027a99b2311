"""A process that has loaded an adapter, and gives a forked worker to each connection (`dspex-bridge serve`)."""
