"""The command `chat`: a conversation in the terminal; reasoning is dimmed."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from seektune.data.chat_format.parse import parse_message
from seektune.data.chat_format.tokens import EOS, THINK_END
from seektune.generate.detokenize import TextDelta, TextStream
from seektune.generate.engine import DecodeEngine
from seektune.generate.failed_ends import FAILED_ENDS
from seektune.generate.limits import PREFIX_CACHE
from seektune.generate.processes import ONE_PROCESS, DecodeProcesses
from seektune.generate.request import Request
from seektune.generate.session import GenerateOptions, Session, note_cache_room
from seektune.io.atomic import refuse_existing
from seektune.io.jsonl import as_line, read_jsonl
from seektune.io.text import check_unicode, printable
from seektune.paths import user_path
from seektune.signals import Interrupted

COMMANDS = """/reset         clear the conversation but keep the system prompt
/system TEXT   start a new conversation with this system prompt
/save FILE     append the conversation to a .jsonl file, as a row of messages
/help          show these commands
/quit          quit, as does Ctrl-D; Ctrl-C stops a response"""


class Conversation:
    """The messages so far, and the model that responds."""

    def __init__(self, voice: Session, paper: Console, prefix_bytes: int = PREFIX_CACHE):
        """A follow-up continues from the caches of what was read before, up to `prefix_bytes` of them."""
        self._prefix_bytes = prefix_bytes
        self._longest = 0
        self._stream: TextStream | None = None
        self.voice = voice
        self.paper = paper
        self.messages: list[dict[str, Any]] = []

    def hear(self, line: str) -> bool:
        """Respond to a message or run a command; returns False to quit."""
        try:
            check_unicode(line)
        except ValueError as error:
            self._note(f"({error})")
            return True
        word, _, rest = line.strip().partition(" ")
        if word in ("/quit", "/exit"):
            return False
        if not word.startswith("/"):
            if line.strip():
                self.ask(line)
            return True
        commands: dict[str, Callable[[str], None]] = {
            "/reset": self._reset,
            "/system": self._system,
            "/save": self._save,
        }
        commands.get(word, self._help)(rest.strip())
        return True

    def ask(self, question: str) -> None:
        """Stream the response; both messages are added to the conversation unless it fails or is stopped."""
        asked = [*self.messages, {"role": "user", "content": question}]
        prompt = self.voice.chat(asked)
        try:
            text = self._say(prompt)
        except Interrupted:
            raise
        except KeyboardInterrupt:
            self._stream = None  # perhaps in the middle of a step
            self._note("\n(stopped; your message was removed)")
            return
        except ValueError as error:  # it cannot fit into the memory for caches
            self._note(f"({error}; your message was removed)")
            return
        self.messages = [*asked, self._understood(text)]

    def _say(self, prompt: list[int]) -> str:
        setting = self.voice.setting
        text = ""
        end = None
        thinking = setting.thinking
        for piece in self._deltas(prompt):
            text = text + piece.text
            end = piece.end
            thought, mark, answer = piece.text.partition(THINK_END) if thinking else ("", "", piece.text)
            self._print(thought, "dim")
            if mark:
                thinking = False
                self._print("\n\n", None)
            self._print(answer, None)
        self.paper.print()
        if end == "length":
            self._note(f"(cut off after {setting.max_new_tokens} tokens; see --max-new-tokens)")
        if end is not None and end in FAILED_ENDS:
            self._note(f"({FAILED_ENDS[end]})")
        return text

    def _deltas(self, prompt: list[int]) -> Iterator[TextDelta]:
        requests = self.voice.requests(prompt, is_chat=True)
        stream = self._stream_for(requests[0])
        stream.add(requests)
        while not stream.done:
            yield from stream.step()

    def _stream_for(self, request: Request) -> TextStream:
        """The stream of the whole conversation; another one where it was stopped, or is too short for the request."""
        if self._stream is None or request.longest > self._longest:
            voice = self.voice
            self._stream = None  # its caches are freed before the memory for others is measured
            self._longest = max(request.longest, voice.model.config.max_position_embeddings)
            engine = DecodeEngine(
                voice.model,
                (),
                voice.setting.speculative,
                self._longest,
                prefix_bytes=self._prefix_bytes,
                memory=voice.setting.memory,
                static_steps=voice.setting.static_steps,
            )
            self._stream = TextStream(engine, (), voice.tokenizer)
        return self._stream

    def _understood(self, text: str) -> dict[str, Any]:
        """The response as a message; text that does not follow the chat format is kept unchanged."""
        try:
            message = parse_message(text + EOS, self.voice.setting.mode, self.voice.encoding)
        except ValueError:
            return {"role": "assistant", "content": text.replace(THINK_END, "")}
        return {key: value for key, value in message.items() if value or key in ("role", "content")}

    def _print(self, text: str, style: str | None) -> None:
        if text:
            self.paper.print(printable(text), end="", style=style, markup=False, highlight=False, soft_wrap=True)

    def _note(self, text: str) -> None:
        self.paper.print(text, style="dim", markup=False, highlight=False)

    def _reset(self, _: str) -> None:
        self.messages = [message for message in self.messages if message["role"] == "system"]
        self._note("(conversation cleared)")

    def _system(self, text: str) -> None:
        self.messages = [{"role": "system", "content": text}] if text else []
        self._note("(new conversation)")

    def _save(self, name: str) -> None:
        if not name:
            self._note("/save needs the name of a file")
            return
        if not any(message["role"] == "assistant" for message in self.messages):
            self._note("(there is no response to save yet)")
            return
        try:
            file = user_path(name)
            if not _holds_conversations(file):
                refuse_existing(file)
            with file.open("a", encoding="utf-8") as paper:
                paper.write(as_line({"messages": self.messages}))
        except OSError as error:
            self._note(f"({name}: {error.strerror})")
            return
        except ValueError as error:
            self._note(f"({error})")
            return
        self._note(f"({len(self.messages)} messages added to {name})")

    def _help(self, _: str) -> None:
        self._note(COMMANDS)


def _holds_conversations(file: Path) -> bool:
    """Whether a file's first line is a conversation, as `/save` writes them."""
    try:
        return file.is_file() and "messages" in next(read_jsonl(file), ("", {}))[1]
    except ValueError:
        return False


def chat(
    model: str,
    system: str | None,
    setting: GenerateOptions,
    processes: DecodeProcesses = ONE_PROCESS,
    prefix_bytes: int = PREFIX_CACHE,
) -> None:
    """Chat until the end of input; rank 0 of `processes` reads and prints.

    Raises:
        ValueError: the model cannot be read.
        OSError: as of reading a model.
    """
    check_unicode(system or "")
    talk = Conversation(Session(model, setting, processes), Console(highlight=False), prefix_bytes)
    talk.voice.lead(partial(_converse, talk, system))


def _converse(talk: Conversation, system: str | None) -> None:
    setting = talk.voice.setting
    note_cache_room(talk.voice.model, setting.memory, setting.speculative, setting.static_steps)
    if system:
        talk.messages = [{"role": "system", "content": system}]
    talk.hear("/help")
    while True:
        try:
            line = talk.paper.input("\n[bold]>[/] ")
        except EOFError:
            return
        except Interrupted:  # the processes of a launcher end together
            raise
        except KeyboardInterrupt:  # meant for a response that has just ended
            continue
        if not talk.hear(line):
            return
