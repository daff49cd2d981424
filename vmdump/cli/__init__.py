"""Floor 8: the command line. Only here is anything printed or an exit code set."""
