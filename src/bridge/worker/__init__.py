"""Inside the worker process. Stands on the ground floor, never on `host`."""
