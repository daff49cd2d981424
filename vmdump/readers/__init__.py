"""Dumps that are there already: a dump is a guest again."""
