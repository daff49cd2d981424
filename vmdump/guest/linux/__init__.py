"""What is known of a guest that runs Linux."""
