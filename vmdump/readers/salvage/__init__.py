"""What is left of damaged dumps: one file for each kind, and what they have in common."""
