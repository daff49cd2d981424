"""A QMP socket in front of QEMU's: several clients, and dumps that vmdump makes."""
