"""The adapters of this project, and what two of them share (type_names)."""
