"""What do diffusers' inference features save on trained networks, and what do they change?

`features` measures them and writes the table.
"""
