"""A module that fails when it is loaded, with a secret in its error."""

import os

from bridge.security.redaction import hold

held = hold([os.environ["NO_ADAPTER"]])
raise RuntimeError(f"no way with {os.environ['NO_ADAPTER']}")
