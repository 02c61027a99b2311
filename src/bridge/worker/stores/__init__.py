"""Where durable sessions are stored."""
