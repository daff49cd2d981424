"""Floor 6: from a source to the bytes of a dump."""
