"""Live guests of a QEMU on this machine: asked over QMP, read through /proc."""
