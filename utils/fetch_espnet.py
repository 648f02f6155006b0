"""Fetch ESPnet's source distribution, of the version and with a checksum of requirements.txt, without building it.

    python utils/fetch_espnet.py espnet-202611.tar.gz

pip cannot do that: to download a source distribution it runs its build code. The package index is pip's.
"""

from __future__ import annotations

import hashlib
import html
import json
import os
import re
import subprocess
import sys
import urllib.parse
import urllib.request
from pathlib import Path

REQUIREMENTS = Path(__file__).resolve().parents[1] / "requirements.txt"
FORMS = "application/vnd.pypi.simple.v1+json, text/html;q=0.5"


def checksums(requirements: str) -> set[str]:
    """SHA-256 of ESPnet's distributions in a list of requirements."""
    block = re.search(r"(?m)^espnet==(?:.*\\\n)*.*$", requirements)
    return set(re.findall(r"--hash=sha256:([0-9a-f]{64})", block[0])) if block else set()


def index() -> str:
    """Address of the package index that pip uses."""
    if url := os.environ.get("PIP_INDEX_URL"):
        return url
    command = [sys.executable, "-m", "pip", "config", "get", "global.index-url"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip() or "https://pypi.org/simple"


def find(name: str) -> str:
    """Address of a file of ESPnet's in the index, by the file's name."""
    page = f"{index().rstrip('/')}/espnet/"
    with urllib.request.urlopen(urllib.request.Request(page, headers={"Accept": FORMS}), timeout=60) as response:
        text = response.read().decode()
        if "json" in response.headers.get("Content-Type", ""):
            urls = [file["url"] for file in json.loads(text)["files"]]
        else:
            urls = [html.unescape(url) for url in re.findall(r'href="([^"]+)"', text)]
    for url in urls:
        if urllib.parse.urlsplit(url).path.endswith(f"/{name}"):
            return urllib.parse.urljoin(page, url)
    raise OSError(f"{page} does not list {name}")


def main() -> None:
    target = Path(sys.argv[1])
    try:
        with urllib.request.urlopen(find(target.name), timeout=60) as response:
            content = response.read()
    except (OSError, ValueError) as error:
        sys.exit(f"error: {target.name}: could not be fetched ({error}); set ESPNET_ROOT to a checkout of ESPnet")
    if hashlib.sha256(content).hexdigest() not in checksums(REQUIREMENTS.read_text(encoding="utf-8")):
        sys.exit(f"error: {target.name}: its checksum is not in requirements.txt, so it is not used; check the index")
    target.write_bytes(content)


if __name__ == "__main__":
    main()
