"""Which compression for this guest and this disk."""
