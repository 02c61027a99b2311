"""The contents of frames: formats, messages, arrays and limits, without any input or output."""
