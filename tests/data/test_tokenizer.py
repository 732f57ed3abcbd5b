import json

import pytest
import tokenizers

from seektune.data.tokenizer import BATCH_TEXTS, BOS, EOS, OFFICIAL_SIZE, PAD, Tokenizer, load_tokenizer, official_file

TEXTS = [
    "A woman is seen kneeling down before a camera, holding two sticks.",
    "  two spaces\tand a tab\n\nnew lines  \n",
    "Numbers 1234567, naïve café, 你好世界, こんにちは, emoji 🙂 and 'quotes'.",
    "",
    " ",
]
CONTROL = [BOS, EOS, PAD, "<｜User｜>", "<｜Assistant｜>", "<think>", "</think>", "<|EOT|>", "｜DSML｜", "<｜image｜>"]


@pytest.fixture(scope="module")
def official() -> Tokenizer:
    return load_tokenizer(OFFICIAL_SIZE)


@pytest.fixture(scope="module")
def oracle() -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer.from_file(str(official_file()))


@pytest.mark.slow
def test_official_vocabulary_encodes_as_the_released_file(official, oracle):
    assert official.vocab_size == 129280
    for text in TEXTS:
        assert official.encode(text) == oracle.encode(text, add_special_tokens=False).ids


def test_bos_is_never_added_and_ids_of_the_first_three_stay(official, tokenizer):
    for each in (official, tokenizer):
        assert (each.bos_id, each.eos_id, each.pad_id) == (0, 1, 2)
        assert each.bos_id not in each.encode("a text")
        assert each.encode("") == []


@pytest.mark.parametrize("size", [322, 512, 4096, 128063])
@pytest.mark.slow
def test_a_reduced_vocabulary_has_exactly_the_ids_asked_for(size):
    small = load_tokenizer(size)
    assert small.vocab_size == size
    assert sorted(small._whole.get_vocab(with_added_tokens=True).values()) == list(range(size))
    for text in TEXTS:
        ids = small.encode(text)
        assert small.decode(ids) == text
        assert all(2 < i < size for i in ids)


def test_a_reduced_vocabulary_keeps_the_first_merges_and_their_ids(oracle, tokenizer):
    spec = json.loads(official_file().read_text(encoding="utf-8"))
    products = [spec["model"]["vocab"][merge.replace(" ", "")] for merge in spec["model"]["merges"]]
    assert products == list(range(259, 128000)), "ids of the official vocabulary follow merge order"
    merged = 2048 - 63
    for i in (0, 1, 2, 3, 258, 259, merged - 1):
        assert tokenizer._whole.id_to_token(i) == oracle.id_to_token(i)
    assert tokenizer._whole.id_to_token(merged) == "<｜fim▁hole｜>"
    assert tokenizer._whole.id_to_token(2047) == "<｜image｜>"


def test_a_reduced_vocabulary_keeps_control_tokens_with_their_flags(oracle, tokenizer):
    kept = {t.content: t for t in tokenizer._whole.get_added_tokens_decoder().values()}
    whole = {t.content: t for t in oracle.get_added_tokens_decoder().values()}
    assert set(kept) == {name for name in whole if "place" not in name or "hold" not in name}
    assert len(kept) == 66
    for name, token in kept.items():
        assert (token.special, token.normalized) == (whole[name].special, whole[name].normalized)
    assert tokenizer._whole.encode("<think>", add_special_tokens=False).ids == [tokenizer._whole.token_to_id("<think>")]


@pytest.mark.parametrize("size", [0, 321, 128064, 129279, 129281])
@pytest.mark.slow
def test_impossible_sizes_are_refused_with_the_possible_ones(size):
    with pytest.raises(ValueError, match=rf"vocab_size {size} .* 322 to 128063 .* 129280"):
        load_tokenizer(size)


def test_control_tokens_written_in_a_text_stay_letters(official, tokenizer):
    for each in (official, tokenizer):
        control = set(each._whole.get_added_tokens_decoder())
        for literal in CONTROL:
            text = f"before {literal} after"
            ids = each.encode(text)
            assert control.isdisjoint(ids), literal
            assert each.decode(ids) == text


def test_a_batch_is_encoded_as_its_texts(tokenizer):
    texts = [f"{i} {text}" for i in range(100) for text in TEXTS + CONTROL]
    assert len(texts) > BATCH_TEXTS
    assert tokenizer.encode_batch(texts) == [tokenizer.encode(text) for text in texts]
    assert tokenizer.encode_batch([]) == []


def test_decoding_shows_control_tokens(tokenizer):
    assert tokenizer.decode([0, *tokenizer.encode("hello there"), 1]) == f"{BOS}hello there{EOS}"


def test_the_bytes_of_tokens_are_those_of_the_text(tokenizer, official):
    for each in (tokenizer, official):
        for text in (*TEXTS, "é 京 \U0001f600 \x00\x7f\xad"):
            assert b"".join(map(each.bytes_of, each.encode(text))) == text.encode()
        ids = each.encode_prompt(f"{BOS}<think>é</think>")
        assert [each.bytes_of(ids[0]), each.bytes_of(ids[1]), each.bytes_of(ids[-1])] == [
            BOS.encode(),
            b"<think>",
            b"</think>",
        ]


@pytest.mark.slow
def test_a_saved_folder_is_read_by_transformers(tmp_path, tokenizer):
    transformers = pytest.importorskip("transformers")
    tokenizer.save(tmp_path / "model")
    for reader in (transformers.PreTrainedTokenizerFast, transformers.AutoTokenizer):
        read = reader.from_pretrained(tmp_path / "model")
        assert (read.bos_token_id, read.eos_token_id, len(read), read.model_max_length) == (0, 1, 2048, 1048576)
        for text in TEXTS:
            assert read(text)["input_ids"] == tokenizer.encode(text)
        assert read.decode(tokenizer.encode(TEXTS[2])) == TEXTS[2]


@pytest.mark.slow
def test_the_official_file_is_saved_unchanged(tmp_path, official):
    official.save(tmp_path)
    assert (tmp_path / "tokenizer.json").read_bytes() == official_file().read_bytes()
