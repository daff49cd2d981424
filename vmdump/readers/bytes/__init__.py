"""Bytes of a dump by offset, whatever they lie in."""
