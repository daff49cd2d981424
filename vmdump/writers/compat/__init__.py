"""The files that QEMU writes, byte for byte."""
