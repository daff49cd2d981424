"""Floor 4: where guests come from, one file each."""
