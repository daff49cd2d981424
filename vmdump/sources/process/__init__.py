"""The memory of any process."""
