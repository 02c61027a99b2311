"""What starts workers and talks to them. Stands on the ground floor, never on `worker`."""
