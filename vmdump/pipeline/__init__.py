"""Floor 5: from blocks to ordered chunks. The only threads of vmdump are here."""
