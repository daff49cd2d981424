"""Other people's programs over vmdump: folders of plugins that they load, and what those share."""
