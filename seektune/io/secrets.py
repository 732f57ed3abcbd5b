"""What looks like a secret and must not be written to a file or sent: by the words of a name, and by a value's form."""

import re
from collections.abc import Mapping
from typing import Any

WORDS = {"token", "secret", "secrets", "key", "pat", "pass", "passcode", "passphrase", "credential", "credentials"}
"""Words of a name, which `_`, `-` and `.` separate."""
ENDINGS = (
    "password",
    "passwd",
    "apikey",
    "secretkey",
    "accesskey",
    "privatekey",
    "authtoken",
    "accesstoken",
    "sshpass",
)
"""How a word may end that is written as one."""
PLACES = ("file", "path", "dir")
"""Last words of names whose value says where a secret lies, not what it is."""
SWITCHES = {"", "0", "1", "true", "false", "yes", "no", "on", "off"}
"""Values that are not secret, whatever the name: HF_HUB_DISABLE_IMPLICIT_TOKEN=1."""
FILE = re.compile(r"[~.]?/[^\s:@]*\.[A-Za-z]+")
"""The path of a file: GOOGLE_APPLICATION_CREDENTIALS=/keys/a.json."""
VALUE = re.compile(
    r"""(?<![A-Za-z0-9])(
    hf_[A-Za-z0-9]{16,} | gh[opsur]_[A-Za-z0-9]{16,} | github_pat_\w{16,} | glpat-[\w-]{16,} | npm_[A-Za-z0-9]{16,}
    | sk-(?=[\w-]*\d)[\w-]{16,} | nvapi-[\w-]{16,} | xox[abprs]-[\w-]{10,} | (AKIA|ASIA)[0-9A-Z]{12,}
    | AIza[\w-]{30,} | eyJ[\w-]{8,}\.eyJ[\w-]{8,}
    ) | ://[^/\s:@]*:[^/\s@]+@ | [?&][\w.-]*(?i:token|signature|secret|password|api_?key|\bsig)=[^&\s]
    | -----BEGIN[ ][A-Z ]*PRIVATE[ ]KEY""",
    re.VERBOSE,
)
"""Tokens as the Hub, GitHub, GitLab, npm, OpenAI, NVIDIA, Slack, AWS and Google issue them, JSON web tokens, a password
or a signature in a URL, and a private key."""
HIDDEN = "(secret)"
"""What `without_secrets` writes in place of a value."""


def is_secret_name(name: str, value: str) -> bool:
    """Whether a variable or key of this name holds a secret; not if the value is a switch or a file's path."""
    words = re.split(r"[_.-]", name.lower())
    if words[-1] in PLACES or "public" in words or value.lower() in SWITCHES or FILE.fullmatch(value):
        return False
    return any(word in WORDS or word.endswith(ENDINGS) for word in words) or "pwd" in words[1:]


def is_secret(value: str) -> bool:
    """Whether a value has the form of a secret, whatever its name."""
    return VALUE.search(value) is not None


def without_secrets(values: Any, name: str = "") -> Any:
    """Plain values with those replaced that look like a secret, by their key or form; `name` is the key of `values`."""
    if isinstance(values, Mapping):
        return {key: without_secrets(value, str(key)) for key, value in values.items()}
    if isinstance(values, list | tuple):
        return [without_secrets(value, name) for value in values]
    if values is None or isinstance(values, bool):
        return values
    return HIDDEN if is_secret_name(name, str(values)) or is_secret(str(values)) else values
