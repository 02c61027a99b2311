"""Values of fields: what hosts send for inputs, and what models write for outputs."""
