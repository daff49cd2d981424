"""The command line. Only here is anything printed or an exit code set."""
