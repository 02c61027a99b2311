from bridge._framing import Frame

DEFAULT_MAX_VALUES: int

def limited(envelope: Frame, max_frame: int, max_values: int) -> Frame: ...
