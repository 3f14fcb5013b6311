"""The tables of who may call, and of what was done; independent of timers."""
