"""Whether the server in this container gets on: it has one real request answered. Run by Docker, as

python3 build/docker/healthcheck.py llm        two tokens, through a prefill and a decode worker
python3 build/docker/healthcheck.py decode     one token, of the worker here
"""

import hashlib
import hmac
import json
import os
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any


def main(model: str, url: str = "http://127.0.0.1:8000") -> None:
    """Ask ``model``; any other answer than a whole one ends this with exit status 1."""
    ask: dict[str, Any] = {"input_ids": [1], "ignore_eos": True}
    if model == "llm":
        ask |= {"max_tokens": 2, "timeout_s": 8}
    else:
        key = bytes.fromhex(Path(os.environ["TANDEM_HANDLE_KEY_FILE"]).read_text().split()[0])
        ask |= {"max_tokens": 1, "access": hmac.digest(key, b"tandem access", hashlib.sha256).hex()}
    try:
        urllib.request.urlopen(f"{url}/v2/models/{model}/generate", json.dumps(ask).encode(), timeout=10).close()
    except urllib.error.HTTPError as error:
        sys.exit(f"{error}: {error.read().decode(errors='replace')}")
    except OSError as error:
        sys.exit(f"{url}: {error}")


if __name__ == "__main__":
    main(*sys.argv[1:])
