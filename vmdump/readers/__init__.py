"""Floor 6: dumps that are there already. A dump is a source again."""
