"""`seektune generate`: what the model says, in the terminal and in files."""

import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from seektune import encode_messages
from seektune.data.chat_format.encode import render_chat_prompt
from seektune.data.chat_format.tokens import EOS
from seektune.data.tokenizer import Tokenizer, load_tokenizer
from seektune.generate.sampling_params import Sampling
from seektune.generate.session import GenerateOptions, Session, choose_encoding
from seektune.model.causal_lm import DeepseekV4ForCausalLM
from seektune.model.config import DeepseekV4Config
from seektune.workflows import generate
from seektune.workflows.generate import Output, generate_file, generate_one
from seektune.workflows.prompt_rows import prompt_text, read_prompt_rows
from tests.run_cli import seektune, without_room

GREEDY = GenerateOptions(max_new_tokens=6, sampling=Sampling(temperature=0))
QUESTION = [{"role": "user", "content": "2+2?"}]


@pytest.fixture(scope="module")
def folder(toy_model: Callable[..., DeepseekV4ForCausalLM], tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("speaker") / "model"
    toy_model(torch.float32, vocab_size=512).save_pretrained(place, format="fp32")
    return place


@cache
def speaker(folder: Path) -> tuple[DeepseekV4ForCausalLM, Tokenizer]:
    return DeepseekV4ForCausalLM.from_pretrained(folder), load_tokenizer(512)


def said(folder: Path, ids: list[int]) -> str:
    model, tokenizer = speaker(folder)
    longer = model.generate(torch.tensor([ids]), 6, temperature=0)[0, len(ids) :].tolist()
    return tokenizer.decode(longer).removesuffix(EOS)


def answered(
    folder: Path, tmp_path: Path, rows: list[Any], setting: GenerateOptions, output: Output
) -> list[dict[str, Any]]:
    prompts, out = tmp_path / "prompts.jsonl", tmp_path / "answers.jsonl"
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows) + "\n", encoding="utf-8")
    generate_file(str(folder), prompts, out, setting, output)
    return [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]


@pytest.mark.slow
def test_a_prompt_is_gone_on_with(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer = load_tokenizer(512)
    generate_one(str(folder), "The man", False, GREEDY, Output())
    expected = said(folder, [tokenizer.bos_id, *tokenizer.encode("The man")])
    found = capsys.readouterr()
    assert found.out == expected + "\n"
    (room,) = found.err.splitlines()
    assert room.startswith("KV cache: ")
    assert "tokens of context fit" in room
    generate_one(str(folder), "2+2?", True, GREEDY, Output())
    ids = tokenizer.encode_prompt(encode_messages(QUESTION))
    assert capsys.readouterr().out == said(folder, ids) + "\n"


def test_control_tokens_of_a_conversation_are_ids_and_those_in_a_text_are_letters() -> None:
    tokenizer = load_tokenizer(512)
    ids = tokenizer.encode_prompt(encode_messages(QUESTION, "thinking"))
    assert len(ids) == 4 + len(tokenizer.encode("2+2?"))
    assert ids[0] == tokenizer.bos_id
    assert [tokenizer.decode([each]) for each in (ids[1], *ids[-2:])] == ["<｜User｜>", "<｜Assistant｜>", "<think>"]
    assert len(tokenizer.encode("<think>")) > 1


def test_the_encoding_and_effort_are_chosen_before_weights_are_read(tmp_path: Path) -> None:
    DeepseekV4Config.preset("tiny").save(tmp_path)
    options = {"reasoning_effort": "low", "thinking": True}
    with pytest.raises(ValueError, match="unknown reasoning_effort 'low'; in the encoding preview it may be None"):
        generate_one(str(tmp_path), "2+2?", True, GenerateOptions(**options), Output())
    with pytest.raises(ValueError, match="holds no weights"):
        generate_one(str(tmp_path), "2+2?", True, GenerateOptions(**options, encoding="0731"), Output())
    DeepseekV4Config.preset("tiny-0731").save(tmp_path)
    assert choose_encoding(str(tmp_path), None) == "0731"
    assert choose_encoding(str(tmp_path), "preview") == "preview"


@pytest.mark.slow
def test_an_encoding_changes_the_prompt(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = replace(GREEDY, thinking=True, reasoning_effort="high", encoding="0731")
    generate_one(str(folder), "2+2?", True, options, Output())
    text = encode_messages(QUESTION, "thinking", reasoning_effort="high", encoding="0731")
    assert capsys.readouterr().out == said(folder, load_tokenizer(512).encode_prompt(text)) + "\n"


@pytest.mark.slow
def test_several_answers_have_seeds_of_their_own(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    generate_one(str(folder), "The man", False, GenerateOptions(max_new_tokens=6, seed=4), Output(samples=2))
    first, second = capsys.readouterr().out.split("\n---\n")
    generate_one(str(folder), "The man", False, GenerateOptions(max_new_tokens=6, seed=5), Output())
    assert capsys.readouterr().out == second
    assert first + "\n" != second


@pytest.mark.slow
def test_drafts_are_counted_and_change_no_greedy_answer(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    generate_one(str(folder), "The man", False, GREEDY, Output())
    plain = capsys.readouterr().out
    generate_one(str(folder), "The man", False, GenerateOptions(6, GREEDY.sampling, speculative=True), Output())
    found = capsys.readouterr()
    assert found.out == plain
    assert found.err.splitlines()[1].startswith("drafts accepted: ")


@pytest.mark.slow
def test_a_file_is_answered_row_by_row(folder: Path, tmp_path: Path) -> None:
    rows = [{"prompt": "The man", "id": 7}, {"messages": QUESTION}, {"prompt": "A longer prompt than the others"}]
    found = answered(folder, tmp_path, rows, GREEDY, Output(samples=2, rows=2, logprobs=True))
    assert [(line["sample"], *(line.get(key) for key in ("id", "prompt"))) for line in found] == [
        (0, 7, "The man"),
        (1, 7, "The man"),
        (0, None, None),
        (1, None, None),
        (0, None, rows[2]["prompt"]),
        (1, None, rows[2]["prompt"]),
    ]
    tokenizer = load_tokenizer(512)
    for line in found:
        if "prompt" in line:
            ids = [tokenizer.bos_id, *tokenizer.encode(line["prompt"])]
        else:
            ids = tokenizer.encode_prompt(encode_messages(line["messages"]))
        assert line["text"] == said(folder, ids)
        assert line["end"] == "length"
        assert len(line["tokens"]) == 6
        assert all(token["logprob"] < 0 for token in line["tokens"])


def test_tools_beside_messages_are_described(tmp_path: Path) -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
    row = {"messages": QUESTION, "tools": [tool], "n": 1, "temperature": None, "user": "me", "id": 3}
    assert prompt_text(row, "chat") == render_chat_prompt(QUESTION, [tool]).text
    assert prompt_text({**row, "tool_choice": "none"}, "chat") == encode_messages(QUESTION)
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps(row) + "\n", encoding="utf-8")
    assert list(read_prompt_rows(rows, "chat")) == [row]


@pytest.mark.slow
def test_an_answer_that_ends_becomes_a_message(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stop = said(folder, load_tokenizer(512).encode_prompt(encode_messages(QUESTION)))[-2:]
    setting = GenerateOptions(6, GREEDY.sampling, stops=(stop,))
    (line,) = answered(folder, tmp_path, [{"messages": QUESTION}], setting, Output())
    assert line["end"] == "stop"
    assert line["message"]["content"] == line["text"]
    (tmp_path / "answers.jsonl").unlink()
    thinking = GenerateOptions(40, GREEDY.sampling, stops=(stop,), thinking=True)
    (line,) = answered(folder, tmp_path, [{"messages": QUESTION}], thinking, Output())
    if line["end"] == "stop":
        assert "the reasoning never ends" in line["problem"]


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ("[1]", "line 2: must be a JSON object"),
        ('{"id": 1}', "line 2: a row needs either prompt"),
        ('{"prompt": "a", "messages": []}', "line 2: a row needs either prompt"),
        ('{"prompt": 3}', "line 2: prompt must be a text, not int"),
        ("{", "line 2: not JSON"),
        ('{"messages": [{"role": "king", "content": "x"}]}', r"line 2: messages\[0\]"),
        (
            '{"messages": [{"role": "assistant", "content": "x"}]}',
            "line 2: the last message must have the role user, developer or tool, not assistant",
        ),
        (
            '{"messages": [{"role": "user", "content": "a"}, {"role": "system", "content": "b"}]}',
            "line 2: the last mess",
        ),
        ('{"messages": []}', "line 2: messages is empty"),
        ('{"messages": null}', "line 2: messages must be a list"),
        (
            '{"prompt": "x", "text": "mine", "sample": 5}',
            "line 2: sample is a key of the answers; rename it in the row",
        ),
        ('{"prompt": "x", "tokens": null}', "line 2: tokens is a key of the answers"),
        ('{"prompt": "x", "max_tokens": 5}', "line 2: a row cannot set max_tokens; use the command's options"),
        ('{"prompt": "x", "n": true}', "line 2: a row cannot set n"),
        ('{"prompt": "x", "logprobs": 0}', "line 2: a row cannot set logprobs"),
        ('{"messages": [], "functions": [{"name": "f"}]}', "line 2: a row cannot set functions"),
        ('{"prompt": "x", "suffix": "end"}', "line 2: a row cannot set suffix"),
        ('{"prompt": "x", "logit_bias": {"5": -100}}', "line 2: a row cannot set logit_bias"),
        ('{"prompt": "x", "tools": [{}]}', "line 2: tools are described in a conversation"),
        (
            '{"messages": [{"role": "user", "content": "a"}], "tool_choice": "required"}',
            "line 2: tool_choice 'required'",
        ),
        ('{"messages": [{"role": "user", "content": "a"}], "tools": {"f": 1}}', "line 2: tools must be a list"),
        ('{"prompt": "\\ud800"}', "line 2: a text holds half of a surrogate pair"),
        ('{"prompt": "x", "id": "\\ud800"}', "line 2: a text holds half of a surrogate pair"),
        (b"\xff", "line 2: not UTF-8 text"),
    ],
)
def test_a_wrong_row_is_named_before_the_model_is_read(tmp_path: Path, row: str | bytes, complaint: str) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_bytes(b'\xef\xbb\xbf{"prompt": "fine"}\n' + (row if isinstance(row, bytes) else row.encode()) + b"\n")
    with pytest.raises(ValueError, match=rf"prompts\.jsonl {complaint}"):
        generate_file(str(tmp_path / "none"), prompts, tmp_path / "out.jsonl", GREEDY, Output())
    assert not (tmp_path / "out.jsonl").exists()


@pytest.mark.slow
@pytest.mark.parametrize("tail", ['{"prompt": "cut o', pytest.param("\x00\x00\n", marks=pytest.mark.slow)])
def test_a_job_that_was_broken_off_goes_on(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tail: str
) -> None:
    rows, output, out = (
        [{"prompt": f"The man {i}"} for i in range(5)],
        Output(samples=2, rows=2),
        tmp_path / "answers.jsonl",
    )
    setting, many = GenerateOptions(max_new_tokens=3, seed=2), generate.generate_all
    monkeypatch.setattr(generate, "PAGE", 1)
    whole = answered(folder, tmp_path, rows, setting, output)
    out.unlink()

    def broken_off(model: Any, tokenizer: Any, requests: Any, *rest: Any, **options: Any) -> Any:
        if len(out.read_text(encoding="utf-8").splitlines()) == 4:
            raise KeyboardInterrupt
        return many(model, tokenizer, requests, *rest, **options)

    def begun() -> None:
        monkeypatch.setattr(generate, "generate_all", broken_off)
        with pytest.raises(KeyboardInterrupt):
            answered(folder, tmp_path, rows, setting, output)
        monkeypatch.setattr(generate, "generate_all", many)
        with out.open("a", encoding="utf-8") as paper:
            paper.write(json.dumps(whole[4]) + "\n" + tail)
        capsys.readouterr()

    begun()
    assert answered(folder, tmp_path, rows, setting, output) == whole
    assert "was interrupted after 2 prompts" in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"answers\.jsonl exists already; name a new file"):
        answered(folder, tmp_path, rows, setting, output)
    out.unlink()
    begun()
    before = out.read_bytes()
    other = GenerateOptions(max_new_tokens=2)
    with pytest.raises(ValueError, match=r"answers\.jsonl exists already; name a new file"):
        answered(folder, tmp_path, rows, other, output)
    assert out.read_bytes() == before
    out.unlink()
    assert len(answered(folder, tmp_path, rows, other, output)) == 10  # the mark of the other job is ours
    assert "broken off" not in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["answers.jsonl", "prompts.jsonl"]


@pytest.mark.slow
def test_any_number_is_a_seed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    generate_one(str(folder), "The man", False, GenerateOptions(max_new_tokens=2, seed=2**64 - 1), Output(samples=2))
    _, second = capsys.readouterr().out.split("\n---\n")
    generate_one(str(folder), "The man", False, GenerateOptions(max_new_tokens=2, seed=0), Output())
    assert capsys.readouterr().out == second


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="half of a surrogate pair"):
        generate_one(str(tmp_path), "\udcff", False, GREEDY, Output())


@pytest.mark.parametrize("name", ["notes.txt", "config.json", "answers.jsonl", "answers.jsonl.unfinished"])
def test_a_file_of_somebody_else_is_not_overwritten(tmp_path: Path, name: str) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "fine"}\n', encoding="utf-8")
    (tmp_path / name).write_text("mine", encoding="utf-8")
    out = tmp_path / name.removesuffix(".unfinished")
    with pytest.raises(ValueError, match=rf"{name} exists already; name a new file, or remove this one first"):
        generate_file(str(tmp_path / "none"), prompts, out, GREEDY, Output())
    assert (tmp_path / name).read_text(encoding="utf-8") == "mine"


def test_prompts_are_not_overwritten(tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "fine"}\n', encoding="utf-8")
    with pytest.raises(ValueError, match="would overwrite the prompts"):
        generate_file(str(tmp_path / "none"), prompts, prompts, GREEDY, Output())


@pytest.mark.slow
def test_the_command_line(folder: Path, tmp_path: Path) -> None:
    answer = seektune("generate", folder, "--prompt", "The man", "--max-new-tokens", "3", "--temperature", "0")
    assert (answer.returncode, without_room(answer.stderr)) == (0, "")
    assert answer.stdout.endswith("\n")
    for words, complaint in (
        ([], "give either --prompt TEXT, or --file PROMPTS and --out ANSWERS"),
        (["--prompt", "x", "--temperature", "-1"], "temperature must be 0 or more, not -1.0"),
        (["--prompt", "x", "--logprobs"], "--logprobs are written to --out"),
    ):
        answer = seektune("generate", folder, *words)
        assert answer.returncode == 2
        assert complaint in answer.stderr


COLOUR = {"type": "object", "properties": {"colour": {"enum": ["red", "blue"]}}, "required": ["colour"]}
CLOSED = {**COLOUR, "additionalProperties": False}


@pytest.mark.slow
def test_completions_follow_a_schema_or_a_regular_expression(folder: Path, tmp_path: Path) -> None:
    rows = [{"prompt": "The man"}, {"messages": QUESTION}]
    setting = replace(GREEDY, max_new_tokens=60, json_schema=CLOSED)
    for line in answered(folder, tmp_path, rows, setting, Output(samples=2)):
        assert line["end"] == "stop"
        assert json.loads(line["text"])["colour"] in ("red", "blue")
    place = tmp_path / "other"
    place.mkdir()
    for line in answered(folder, place, rows, replace(GREEDY, max_new_tokens=60, regex="[xy]{3}"), Output()):
        assert (len(line["text"]), line["end"]) == (3, "stop")
        assert set(line["text"]) <= {"x", "y"}


@pytest.mark.slow
def test_the_schema_is_part_of_a_chat_s_prompt(folder: Path) -> None:
    voice = Session(str(folder), replace(GREEDY, json_schema=CLOSED))
    text = encode_messages([{"role": "system", "response_format": CLOSED, "content": ""}, *QUESTION])
    assert voice.chat(QUESTION) == load_tokenizer(512).encode_prompt(text)


@pytest.mark.slow
def test_what_no_grammar_can_follow_is_refused_before_weights_are_read(tmp_path: Path) -> None:
    DeepseekV4Config.preset("tiny").save(tmp_path)
    (tmp_path / "schema.json").write_text('{"not": {}}', encoding="utf-8")
    options = ["--prompt", "x", "--json-schema", str(tmp_path / "schema.json")]
    answer = seektune("generate", str(tmp_path), *options)
    assert (answer.returncode, answer.stderr) == (2, 'seektune: --json-schema: no grammar can follow "not"\n')
    answer = seektune("generate", str(tmp_path), *options, "--regex", "a")
    assert answer.stderr == "seektune: --json-schema and --regex exclude each other; give one\n"
    answer = seektune("chat", str(tmp_path), "--regex", "(")
    assert answer.stderr == "seektune: --regex: unclosed group\n"
