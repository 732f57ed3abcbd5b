"""The help of every verb: its examples parse, its words are the field's, and nothing in it is only for a checkout."""

import re
import shlex
from collections.abc import Iterator

import pytest
import typer

from seektune import cli

APP = typer.main.get_command(cli.app)


def verbs(command: typer.core.TyperGroup, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The words of every verb below a command; `launch slurm` has two."""
    for name, each in command.commands.items():
        below = (*path, name)
        if isinstance(each, typer.core.TyperGroup):
            yield from verbs(each, below)
        else:
            yield below


VERBS = [(), *verbs(APP)]


def help_of(verb: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> str:
    APP([*verb, "--help"], prog_name="seektune", standalone_mode=False)
    return capsys.readouterr().out


@pytest.mark.parametrize("verb", VERBS, ids=" ".join)
def test_examples_parse(verb: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    examples = [line.strip() for line in re.findall(r"^    (seektune .*)$", help_of(verb, capsys), re.MULTILINE)]
    assert examples
    for example in examples:
        words = shlex.split(re.sub(r" > \S+$", "", example))[1:]
        assert tuple(words[: len(verb)]) == verb
        assert callable(APP(words, standalone_mode=False))


@pytest.mark.parametrize("verb", VERBS, ids=" ".join)
def test_every_option_has_a_sentence(verb: tuple[str, ...]) -> None:
    command = APP
    for name in verb:
        assert isinstance(command, typer.core.TyperGroup)
        command = command.commands[name]
    texts = [each.help or "" for each in command.params if isinstance(each, typer.core.TyperOption)]
    assert all(text[:1].isupper() or text[:1] in "`s" for text in texts), texts
    assert all(text.endswith(".") for text in texts), texts


QUAINT = r"likeliest|goes on|go on|tells?|hears?|dice|speaks?|says|the so many|puts? on|asked for|as it stands|Hear it"


@pytest.mark.parametrize("verb", VERBS, ids=" ".join)
def test_words_are_standard_terms(verb: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    text = help_of(verb, capsys)
    assert re.findall(rf"\b(?:{QUAINT})\b", text) == []
    assert "examples/" not in text


def test_sampling_flags_are_those_of_transformers_and_vllm(capsys: pytest.CaptureFixture[str]) -> None:
    text = help_of(("generate",), capsys)
    for flag in ("temperature", "top-p", "top-k", "min-p", "repetition-penalty", "max-new-tokens", "seed", "stop"):
        assert f"\n  --{flag} " in text
