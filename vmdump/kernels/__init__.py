"""Cython over ``csrc/``: buffers and integers in, numpy arrays out, no GIL inside and no file format."""
