"""Floor 5: from blocks to ordered chunks. The worker threads of vmdump are here."""
