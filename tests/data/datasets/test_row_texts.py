"""Encoders of the kinds that write rows as texts."""

import pickle
from typing import Any, get_args

import pytest

from seektune.data.datasets.chat import ChatConfig
from seektune.data.datasets.dataset import EncodeSettings
from seektune.data.datasets.preference import PreferenceConfig
from seektune.data.datasets.prompt_completion import PromptCompletionConfig
from seektune.data.datasets.row_texts import WrittenConfig
from seektune.data.datasets.text import TextConfig
from seektune.data.sources.row import BadRow, SourceRow
from seektune.data.tokenizer import Tokenizer
from tests.data.conversations.rows import REASONED, ROWS, answer, user

SETTINGS = EncodeSettings(2048)


def encode(section: WrittenConfig, *rows: dict[str, Any]) -> list[Any]:
    found = section.encoder(SETTINGS).encode([SourceRow(row, f"line {i}", i) for i, row in enumerate(rows, start=1)])
    return found


def section(kind: type[WrittenConfig], **keys: Any) -> WrittenConfig:
    (name,) = get_args(kind.model_fields["kind"].annotation)
    return kind(kind=name, path="rows", **keys)


def test_rows_of_a_batch_are_those_encoded_alone() -> None:
    chat = section(ChatConfig)
    together = encode(chat, *ROWS.values())
    assert [found[0].tokens for found in together] == [encode(chat, row)[0][0].tokens for row in ROWS.values()]
    assert [len(found) for found in together] == [1, 1, 2, 1]


def test_names_are_places_and_tell_the_examples_of_a_row_apart() -> None:
    plain, reasoned = encode(section(ChatConfig), ROWS["plain"], REASONED)
    assert [example.name for example in plain] == ["line 1"]
    assert [example.name for example in reasoned] == ["line 2, example 1 of 2", "line 2, example 2 of 2"]


def test_a_bad_row_does_not_disturb_the_others() -> None:
    first, second, third = encode(section(ChatConfig), ROWS["plain"], {"messages": None}, ROWS["plain"])
    assert second == BadRow("line 2", "the row is empty: it has no column that is not null")
    assert first[0].tokens == third[0].tokens


def test_text_is_taught_whole(tokenizer: Tokenizer) -> None:
    ((example,),) = encode(section(TextConfig), {"text": "red bucket"})
    assert example.tokens == [tokenizer.bos_id, *tokenizer.encode("red bucket"), tokenizer.eos_id]
    assert example.taught == [False] + [True] * (len(example.tokens) - 1)


def test_a_prompt_has_the_ids_that_a_server_reads(tokenizer: Tokenizer) -> None:
    columns = {"prompt": "q", "completion": "a"}
    ((example,),) = encode(section(PromptCompletionConfig, columns=columns), {"q": "The man ", "a": "walks."})
    prompt = [tokenizer.bos_id, *tokenizer.encode("The man ")]
    assert example.tokens == [*prompt, *tokenizer.encode("walks."), tokenizer.eos_id]
    assert example.taught == [i >= len(prompt) for i in range(len(example.tokens))]


def test_a_preference_has_the_chosen_and_the_rejected_response(tokenizer: Tokenizer) -> None:
    ((chosen, rejected),) = encode(section(PreferenceConfig), {"prompt": "a", "chosen": "b", "rejected": "c"})
    for example, text in ((chosen, "b"), (rejected, "c")):
        taught = [token for token, is_taught in zip(example.tokens, example.taught, strict=True) if is_taught]
        assert tokenizer.decode(taught) == f"{text}<｜end▁of▁sentence｜>"


def test_a_preference_of_several_reasoned_responses_is_refused() -> None:
    turns = [answer("1", "r"), user("b"), answer("2", "s")]
    (found,) = encode(section(PreferenceConfig), {"prompt": "a", "chosen": turns, "rejected": [answer("3")]})
    assert "chosen has several responses" in found.reason


def test_the_encoding_is_the_checkpoints_or_the_datasets() -> None:
    settings = EncodeSettings(2048, "0731")
    row = SourceRow({"messages": [user("a"), answer("b", "r")], "reasoning_effort": "low"}, "line 1", 0)
    assert not isinstance(section(ChatConfig).encoder(settings).encode([row])[0], BadRow)
    found = section(ChatConfig, encoding="preview").encoder(settings).encode([row])[0]
    assert isinstance(found, BadRow)
    assert "in the encoding preview it may be" in found.reason


def test_an_effort_that_the_encoding_lacks_is_refused_before_rows_are_read() -> None:
    with pytest.raises(ValueError, match="unknown reasoning_effort 'low'"):
        section(ChatConfig, reasoning_effort="low").encoder(SETTINGS)


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        (
            ChatConfig,
            [
                {"teach": "last"},
                {"thinking": "chat"},
                {"reasoning_effort": "max"},
                {"encoding": "v41"},
                {"columns": {"prompt": "q"}},
                {"control_tokens": "plain"},
            ],
        ),
        (TextConfig, [{"columns": {"text": "q"}}, {"control_tokens": "plain"}]),
        (PromptCompletionConfig, [{"columns": {"prompt": "q"}}]),
        (PreferenceConfig, [{"thinking": "thinking"}]),
    ],
)
def test_the_identity_names_everything_that_changes_the_tokens(
    kind: type[WrittenConfig], changes: list[dict[str, Any]]
) -> None:
    sections = [section(kind), *(section(kind, **change) for change in changes)]
    names = [each.encoder(settings).identity for each in sections for settings in (SETTINGS, EncodeSettings(512))]
    assert len(set(names)) == len(names)
    assert section(kind, label="other", limit=3).encoder(SETTINGS).identity == names[0]


def test_a_card_names_the_dataset_on_the_hub() -> None:
    card = ChatConfig(kind="chat", hub="org/rows").card()
    assert (card.text, card.hub_id) == (
        "Conversations of [org/rows](https://huggingface.co/datasets/org/rows).",
        "org/rows",
    )
    assert section(TextConfig).card().text == "Text."


def test_an_encoder_travels_to_other_processes() -> None:
    encoder = section(ChatConfig).encoder(SETTINGS)
    row = SourceRow(REASONED, "line 1", 0)
    expected = encoder.encode([row])
    copy = pickle.loads(pickle.dumps(encoder))
    assert (copy.encode([row]), copy.identity) == (expected, encoder.identity)
    assert len(pickle.dumps(encoder)) < 2000


def test_a_column_weighs_rows_in_the_loss() -> None:
    rows = [{"prompt": "a", "completion": "b", "w": value} for value in (0.5, "2", 0, 3)]
    weighted = section(PromptCompletionConfig, weight_column="w")
    assert [found[0].weight for found in encode(weighted, *rows)] == [0.5, 2.0, 0.0, 3.0]
    assert [found[0].weight for found in encode(section(PromptCompletionConfig), *rows)] == [1.0] * 4
    assert weighted.encoder(SETTINGS).identity != section(PromptCompletionConfig).encoder(SETTINGS).identity
    first, second = encode(section(ChatConfig, weight_column="w"), {**REASONED, "w": 0.25})[0]
    assert (first.weight, second.weight) == (0.25, 0.25)


@pytest.mark.parametrize("value", [None, "heavy", -1, True, float("nan"), float("inf"), [1], 1e300])
def test_a_weight_that_is_not_a_number_is_a_bad_row(value: object) -> None:
    row = {"prompt": "a", "completion": "b", "w": value}
    (found,) = encode(section(PromptCompletionConfig, weight_column="w"), row)
    assert isinstance(found, BadRow)
    assert found.reason.startswith("w is ")
    assert found.reason.endswith("which must be a number of 0 or more")
