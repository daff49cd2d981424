"""Where guests come from: a session that gives the guest of one moment."""
