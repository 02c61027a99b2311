"""What stands in a frame: formats, messages, arrays, limits. No input or output happens here."""
