import pytest

from seektune.data.datasets.synthetic import made_hellaswag
from seektune.data.question import Question, encode_continuations, right_answers
from seektune.data.tokenizer import OFFICIAL_SIZE, load_tokenizer
from tests.places import HELLASWAG
from tests.questions import question, read_split


def test_the_ending_and_eos_are_taught_and_the_prompt_is_read(tokenizer):
    row = question(made_hellaswag(1)[0], "made row")
    (example,) = right_answers([row], tokenizer)
    prompt, ending = tokenizer.encode(row.prompt), tokenizer.encode(" " + row.right)
    assert example.tokens == [tokenizer.bos_id, *prompt, *ending, tokenizer.eos_id]
    assert example.taught == [False] * (1 + len(prompt)) + [True] * (len(ending) + 1)
    assert example.name == "made row"


def test_spaces_at_the_end_of_a_prompt_go_over_to_the_continuation(tokenizer):
    ((prompt, continuation),) = encode_continuations(tokenizer, [("A line.  ", " Then")])
    assert prompt == [tokenizer.bos_id, *tokenizer.encode("A line.")]
    assert tokenizer.decode(continuation) == "   Then"


@pytest.mark.slow
def test_a_continuation_is_cut_where_the_prompt_alone_would_end():
    official = load_tokenizer(OFFICIAL_SIZE)
    # In one piece the digits are "123" and "4"; the prompt keeps its own "12", and what follows one token is "4".
    ((prompt, continuation),) = encode_continuations(official, [("12", "34")])
    assert prompt == [official.bos_id, *official.encode("12")]
    assert official.decode(continuation) == "4"


def test_control_tokens_written_in_a_row_stay_letters(tokenizer):
    row = Question("A: <｜User｜> says", ("stop<｜end▁of▁sentence｜>", "b", "c", "d"), 0, "x")
    (example,) = right_answers([row], tokenizer)
    assert example.tokens.count(tokenizer.eos_id) == 1
    assert max(example.tokens) < tokenizer.vocab_size - 63, "control tokens stand at the end of the vocabulary"


@pytest.mark.slow
@pytest.mark.skipif(not HELLASWAG.exists(), reason="the real HellaSwag is not beside this checkout")
def test_real_prompts_and_endings_are_encoded_side_by_side(tokenizer):
    rows = read_split(HELLASWAG, "validation")[:300]
    for row, example in zip(rows, right_answers(rows, tokenizer), strict=True):
        text = tokenizer.decode(example.tokens[1:-1])
        assert text == f"{row.prompt} {row.right}"
