"""`seektune chat`: the model reads the whole conversation; commands change it."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from seektune import encode_messages
from seektune.data.chat_format.tokens import THINK_END
from seektune.generate.detokenize import TextDelta
from seektune.generate.sampling_params import Sampling
from seektune.generate.session import GenerateOptions, Session
from seektune.model.causal_lm import DeepseekV4ForCausalLM
from seektune.workflows import chat as chat_page
from seektune.workflows.chat import Conversation, chat


@pytest.fixture(scope="module")
def folder(toy_model: Callable[..., DeepseekV4ForCausalLM], tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("chat") / "model"
    toy_model(torch.float32, vocab_size=512).save_pretrained(place, format="fp32")
    return place


class FakeChat:
    """A conversation with given responses; records the console output and the prompts that the model gets."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, thinking: bool, responses: list[Any]):
        self.console = Console(file=io.StringIO(), force_terminal=True, color_system="standard", width=200)
        self.conversation = Conversation(Session(str(folder), GenerateOptions(thinking=thinking)), self.console)
        self.prompts: list[str] = []
        self.responses = iter(responses)
        monkeypatch.setattr(chat_page, "stream_text", self._deltas)

    def _deltas(self, _decoding: Any, requests: Any, tokenizer: Any) -> Any:
        self.prompts.append(tokenizer.decode(requests[0].prompt))
        response = next(self.responses)
        for i, text in enumerate(response):
            if text is KeyboardInterrupt:
                raise KeyboardInterrupt
            yield TextDelta(0, text, None, "stop" if i == len(response) - 1 else None)  # type: ignore[arg-type]

    @property
    def shown(self) -> str:
        file = self.console.file
        assert isinstance(file, io.StringIO)
        return file.getvalue()


def test_history_grows_and_reasoning_is_dimmed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeChat(folder, monkeypatch, True, [["Let me", " see.", THINK_END, "Fo", "ur."], [f"x{THINK_END}y"]])
    assert fake.conversation.handle("2+2?")
    assert fake.conversation.messages == [
        {"role": "user", "content": "2+2?"},
        {"role": "assistant", "content": "Four.", "reasoning_content": "Let me see."},
    ]
    assert "\x1b[2mLet me\x1b[0m" in fake.shown
    assert "\n\nFour." in fake.shown
    assert THINK_END not in fake.shown
    fake.conversation.handle("And 3+3?")
    messages = fake.conversation.messages
    assert fake.prompts[1] == encode_messages(messages[:3], "thinking")
    assert "Four." in fake.prompts[1]


def test_commands(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake = FakeChat(folder, monkeypatch, False, [["Hi."], ["Hello."]])
    conversation = fake.conversation
    assert conversation.handle("/system Be brief.")
    conversation.handle("Hello")
    assert fake.prompts == [encode_messages([{"role": "system", "content": "Be brief."}, conversation.messages[1]])]
    conversation.handle(f"/save {tmp_path / 'talk.jsonl'}")
    (row,) = (tmp_path / "talk.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(row) == {"messages": conversation.messages}
    assert len(conversation.messages) == 3
    conversation.handle("/reset")
    assert conversation.messages == [{"role": "system", "content": "Be brief."}]
    conversation.handle(f"/save {tmp_path / 'nothing.jsonl'}")
    assert not (tmp_path / "nothing.jsonl").exists()
    conversation.handle("Hello again")
    conversation.handle("/save /nowhere/at/all")
    conversation.handle("/save")
    conversation.handle("/what")
    before = list(conversation.messages)
    assert conversation.handle("bytes \udcff of another encoding")
    assert conversation.messages == before
    for words in (
        "no response to save yet",
        "half of a surrogate",
        "No such file",
        "/save needs the name",
        "/reset         clear",
    ):
        assert words in fake.shown
    assert conversation.handle("  ")
    assert not conversation.handle("/quit")


def test_stopped_response_leaves_history_unchanged(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeChat(folder, monkeypatch, False, [["One."], ["Tw", KeyboardInterrupt]])
    fake.conversation.handle("1")
    before = list(fake.conversation.messages)
    assert fake.conversation.handle("2")
    assert fake.conversation.messages == before
    assert "your message was removed" in fake.shown


def test_response_cannot_control_the_terminal(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeChat(folder, monkeypatch, False, [["\x1b]0;title\x07 [bold]x[/]"]])
    fake.conversation.handle("1")
    assert "\\x1b]0;title\\x07 [bold]x[/]" in fake.shown


def test_chat_with_a_model(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("Hello\n/save\n"))
    chat(str(folder), "Be brief.", GenerateOptions(max_new_tokens=4, sampling=Sampling(temperature=0)))
    shown = capsys.readouterr().out
    assert "cut off after 4 tokens" in shown
    assert "/save needs the name of a file" in shown


def test_interrupt_between_responses_does_not_end_the_conversation(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = iter([KeyboardInterrupt(), EOFError()])

    def typed(*_: object) -> str:
        raise next(lines)

    monkeypatch.setattr(Console, "input", typed)
    chat(str(folder), None, GenerateOptions())
    assert not list(lines)
