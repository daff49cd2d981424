"""Tests against running guests: real QEMU, real kernels."""
