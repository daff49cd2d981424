"""Codecs, and the engines that do their work."""
