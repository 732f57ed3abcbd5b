"""Secrets are taken out of values that leave the machine; tests/launch/test_secrets.py has their forms."""

from seektune.io.secrets import HIDDEN, without_secrets

TOKEN = "hf_0123456789abcdefABCDEF"


def test_secrets_are_hidden_by_key_and_by_form_at_any_depth() -> None:
    values = {
        "data": {"path": f"https://user:{TOKEN}@host/rows", "storage": [{"secret-key": "x", "endpoint": "host"}]},
        "hf_token": 12345,
        "note": f"use {TOKEN}",
        "signed": "https://host/rows.jsonl?X-Signature=abcdef&b=1",
    }
    assert without_secrets(values) == {
        "data": {"path": HIDDEN, "storage": [{"secret-key": HIDDEN, "endpoint": "host"}]},
        "hf_token": HIDDEN,
        "note": HIDDEN,
        "signed": HIDDEN,
    }


def test_whole_words_of_keys_count() -> None:
    values = {
        "batch_tokens": 8192,
        "keep_last": 2,
        "tokenizer": "own",
        "key": None,
        "token": False,
        "lora": {"targets": ["wq_a", "wkv"]},
        "betas": (0.9, 0.95),
        "url": "https://host/rows?page=2&assign=x",
    }
    assert without_secrets(values) == {**values, "betas": [0.9, 0.95]}
