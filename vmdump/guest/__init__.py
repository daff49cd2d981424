"""A guest of one moment: its memory, its notes, and what follows from them."""
