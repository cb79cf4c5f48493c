"""Derived randomness: every draw comes from a hash of the run seed, a purpose and keys, never from a stream.

Floor 0. A draw therefore depends neither on batch composition, nor on where a process died, nor on world size.
"""

import hashlib


def derive_seed(seed: int, purpose: str, *keys: int | str) -> int:
    """Return a 63-bit seed for one draw, e.g. `derive_seed(run_seed, "sample", step, prompt_id, generation)`."""
    parts = "\x1f".join([str(seed), purpose, *(f"{type(key).__name__}:{key}" for key in keys)])
    return int.from_bytes(hashlib.blake2b(parts.encode(), digest_size=8).digest(), "big") >> 1
