"""From blocks to ordered chunks. The worker threads of vmdump are here."""
