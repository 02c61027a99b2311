"""JSON Schemas of fields as Python types, and the constraints that values of fields must meet. No DSPy."""
