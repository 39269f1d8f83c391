"""What may run in a page: its own script, by its hash, and nothing else."""

from __future__ import annotations

import base64
import hashlib
import json
import re

DATA = '<script type="application/json">'


def only_its_own_script(html: str) -> bool:
    """Whether one script can run, the policy names its hash and no other, and all else that is
    called a script is data without a tag in it."""
    own, *others = re.findall(r"<script>(.*?)</script>", html, re.S)
    data = re.findall(f"{DATA}(.*?)</script>", html, re.S)
    digest = base64.b64encode(hashlib.sha256(own.encode()).digest()).decode()
    allowed = re.findall(
        r'http-equiv="Content-Security-Policy" content="[^"]*script-src ([^;]*);', html
    )
    for text in data:
        json.loads(text)
    return (
        not others
        and len(re.findall("<script", html, re.I)) == 1 + len(data)
        and not any("<" in text for text in data)
        and [entry.replace("&#39;", "'") for entry in allowed] == [f"'sha256-{digest}'"]
    )
