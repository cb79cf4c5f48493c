"""posttrain: teach small language models from feedback, and show honestly whether it worked."""

import logging

# peft imports bitsandbytes wherever it is installed, which warns of a kernel that nothing here uses.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)

__version__ = "0.1.0"
