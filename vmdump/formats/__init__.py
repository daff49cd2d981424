"""Floor 2: file layouts as data. Nothing here opens a file."""
