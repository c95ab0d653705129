"""How fast this program is on this machine, beside what one would otherwise use."""
