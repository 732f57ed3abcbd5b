import json

import pytest

from seektune.data.tokenizer import RENAMED, SYSTEM, Tokenizer


@pytest.fixture(scope="session")
def tokenizer_v41(tokenizer: Tokenizer) -> Tokenizer:
    """A reduced vocabulary that has V4.1's system token, under its name in this tokenizer."""
    spec = json.loads(tokenizer.text)
    system = {**spec["added_tokens"][-1], "id": tokenizer.vocab_size, "content": RENAMED[SYSTEM]}
    return Tokenizer(json.dumps({**spec, "added_tokens": [*spec["added_tokens"], system]}))
