"""Whether the Hugging Face Hub can be reached, asked once and quickly, before a library retries for half a minute.

Floor 0. Without it, transformers and datasets are told to work from their caches, and say at once what is missing.
"""

import os
import socket
from functools import cache
from urllib.parse import urlsplit

PROXIES = ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY")
TIMEOUT_SECONDS = 5.0


def work_offline_if_unreachable() -> None:
    """Put the Hub's client into offline mode where its server cannot be reached."""
    if reachable():
        return
    from huggingface_hub import constants

    constants.HF_HUB_OFFLINE = True


@cache
def reachable() -> bool:
    """Return whether a connection to the Hub's server opens; through a proxy, it is taken to."""
    if any(os.environ.get(name) for name in PROXIES):
        return True
    endpoint = urlsplit(os.environ.get("HF_ENDPOINT") or "https://huggingface.co")
    port = endpoint.port or (80 if endpoint.scheme == "http" else 443)
    try:
        socket.create_connection((endpoint.hostname or "", port), timeout=TIMEOUT_SECONDS).close()
    except OSError:
        return False
    return True
