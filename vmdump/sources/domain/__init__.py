"""Live guests of libvirt."""
