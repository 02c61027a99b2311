"""Indexes of texts by their vectors, and the embedders that make vectors of texts."""
