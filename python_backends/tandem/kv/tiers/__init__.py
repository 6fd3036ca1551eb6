"""The second tier of the prefix cache: where blocks go that have no room in the fast memory, and come back from.

memory.py    how a block's bytes get out of KV memory and into it: what an engine provides
store.py     what a place for blocks is
disk.py      files
host.py      the host's memory, above files where both are wanted
worth.py     whether reading is quicker than computing
read.py      one read under way
tier.py      the threads that write and read
"""
