"""File layouts as data. Nothing here opens a file."""
