"""What is whole of damaged dumps: one file for each kind, and what they have in common."""
