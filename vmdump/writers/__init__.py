"""From a guest to the bytes of a dump."""
