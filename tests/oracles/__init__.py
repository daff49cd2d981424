"""Independent readers and writers of dump files: the judges of what vmdump writes.

Nothing here imports vmdump. The layouts are typed from the format descriptions a second time on purpose: a
field that vmdump declares at the wrong offset cannot be read back by the same mistake.
"""
