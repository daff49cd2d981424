"""What is done with guests and dumps."""
