"""What a worker can do: each module here is an adapter."""
