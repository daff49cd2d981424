"""Guests that do not exist: memory that is generated."""
