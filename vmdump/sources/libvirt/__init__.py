"""libvirt: its connections, its domains, and what its own dump tells of one."""
