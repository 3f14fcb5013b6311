"""What the processes of one web server share.

`config.web` imports this module before it forks them. Where they are spawned instead, each has its own, and says for
itself what otherwise one says for all.
"""

import mmap

# Which parts `/readyz` last found missing, a bit for each, so that only a change of it is logged.
missing_parts = mmap.mmap(-1, 1)
# Where the web server listens, as it was told; empty where that is not known.
listens_on = ""
