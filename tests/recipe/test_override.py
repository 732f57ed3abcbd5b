"""Dotted overrides: their grammar, and how they change a document."""

import pytest

from seektune.recipe.document import parse
from seektune.recipe.override import apply_overrides, read_overrides


def plain(words: list[str]) -> dict[str, object]:
    return {".".join(path): entry.plain() for path, entry in read_overrides(words).items()}


def test_both_grammars_are_equivalent() -> None:
    expected = {"optimizer.lr": 1e-4, "seed": -1, "batch.pack": True, "model.weights": None}
    assert plain(["--optimizer.lr=1e-4", "--seed=-1", "--batch.pack=true", "--model.weights=null"]) == expected
    assert plain(["--optimizer.lr", "1e-4", "--seed", "-1", "--batch.pack", "true", "--model.weights", "~"]) == expected


def test_lists_and_quotes_are_yaml_and_other_characters_are_literal() -> None:
    assert plain(["--a=[0.9, 1e-2]"]) == {"a": [0.9, 0.01]}
    assert plain(["--a='5'"]) == {"a": "5"}
    assert plain(["--a=C:\\runs: x #1 *y &z"]) == {"a": "C:\\runs: x #1 *y &z"}
    assert plain(["--a=k=v"]) == {"a": "k=v"}


def test_last_override_wins() -> None:
    assert plain(["--steps=3", "--steps=5"]) == {"steps": 5}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--optimizer.lr"], "--optimizer.lr needs a value"),
        (["--optimizer.lr", "--steps=3"], "--optimizer.lr needs a value"),
        (["--run_dir="], "--run_dir needs a value"),
        (["-x"], "-x is not an override; write --section.key=value, as in --optimizer.lr=1e-4"),
        (["-steps=3"], "-steps=3 is not an override; write --steps=3"),
        (["--"], "-- is not an override"),
        (["--.lr=3"], "--.lr=3 is not an override"),
        (["--a..b=3"], "is not an override"),
        (["--5=3"], "is not an override"),
        (["--a=[1"], "--a=[1: this is not YAML"),
        (["--a=[&x 1, *x]"], "anchors"),
        (["--a=" + "[" * 99], "nested"),
    ],
)
def test_invalid_overrides_are_refused(words: list[str], said: str) -> None:
    with pytest.raises(ValueError, match=r"^-") as caught:
        read_overrides(words)
    assert said in str(caught.value)


def test_message_for_a_long_value_is_short() -> None:
    with pytest.raises(ValueError, match="not YAML") as caught:
        read_overrides(["--a=[" + "x" * 10_000])
    assert len(str(caught.value)) < 300


def test_overrides_create_sections_and_replace_values() -> None:
    document = parse("a: {b: 1, c: 2}\nempty:\n", "r.yaml")
    assert document is not None
    changed = apply_overrides(document, read_overrides(["--a.b=9", "--new.key=x", "--empty.key=1"]))
    assert changed.plain() == {"a": {"b": 9, "c": 2}, "new": {"key": "x"}, "empty": {"key": 1}}
    found = changed.find(("a", "b"))
    assert found is not None
    assert (found.where, found.override) == ("--a.b=9", True)


def test_override_below_a_scalar_is_refused() -> None:
    document = parse("a: {b: 1}\n", "r.yaml")
    assert document is not None
    with pytest.raises(ValueError, match=r"--a\.b\.c=1: a\.b holds a single value here"):
        apply_overrides(document, read_overrides(["--a.b.c=1"]))
