"""The worker process: its dispatcher, sessions, stores and commands."""
