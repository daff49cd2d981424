"""Where dumps go."""
