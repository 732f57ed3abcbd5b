"""Groups of sampled answers: which are kept in which order, what a failed reward becomes, and rows that do not fit."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from seektune.data.chat_format.encode import render_training_texts
from seektune.data.chat_format.pieces import encode_texts
from seektune.data.example import Example, continuation
from seektune.data.rollouts import Rollout, RolloutError
from seektune.data.tokenizer import load_tokenizer
from seektune.rewards.answer_metrics import Answer
from seektune.rewards.sample import RewardSample
from seektune.run.objective import VARIANTS, VariantDefaults
from seektune.run.rewarded_prompt import RewardedPrompt
from seektune.run.sampled_answers import SampledAnswer
from seektune.run.sampled_groups import GroupSampler
from seektune.signals import Interrupted
from seektune.train.rollout_objectives import GrpoConfig

SAMPLE = RewardSample("prompt", Answer("a"), Answer("b"), truncated=False)


@pytest.fixture(scope="module")
def sampler() -> GroupSampler:
    section = GrpoConfig.model_validate({"name": "grpo", "reward": {"metric": "last_number"}, "group_size": 2})
    return GroupSampler(section, load_tokenizer(2048), "0731", lambda samples: [0.0] * len(samples), length=64, seed=0)


def task(position: int) -> RewardedPrompt:
    return RewardedPrompt((position,), ((position,),))


def sampled(
    sampler: GroupSampler, monkeypatch: pytest.MonkeyPatch, useful: str, groups: int, rounds: int
) -> tuple[list[int], int, int]:
    """The prompts whose groups are kept, with the numbers drawn and dropped.

    Args:
        useful: of each prompt in order, 1 if the rewards of its group differ and 0 if not.
    """

    def made(self: Any, model: Any, tasks: Sequence[RewardedPrompt], start: int, progress: Any) -> list[list[Rollout]]:
        assert start == tasks[0].prompt[0]
        return [
            [Rollout(each.prompt, (), (), float(n) * int(useful[each.prompt[0]])) for n in (0, 1)] for each in tasks
        ]

    monkeypatch.setattr(GroupSampler, "_groups", made)
    own = replace(sampler, section=sampler.section.model_copy(update={"resample": rounds}))
    model: Any = None
    found = own.sample(model, task, 0, groups, lambda: None)
    return [each.prompt[0] for each in found.rollouts[::2]], found.drawn, found.dropped


@pytest.mark.parametrize(
    ("useful", "rounds", "kept", "drawn"),
    [
        ("1111", 3, [0, 1, 2, 3], 4),
        ("0101", 0, [0, 1, 2, 3], 4),  # nothing is replaced
        ("010111", 1, [1, 3, 4, 5], 6),  # 0 and 2 are replaced
        ("01010110", 2, [1, 3, 5, 6], 7),  # 4 replaces 0 in vain, and is itself replaced
        ("010100", 1, [0, 1, 2, 3], 6),  # the first equal ones fill what is missing, at their own places
        ("00000000", 1, [0, 1, 2, 3], 8),
    ],
)
def test_groups_of_equal_rewards_are_replaced_in_the_drawn_order(
    sampler: GroupSampler, monkeypatch: pytest.MonkeyPatch, useful: str, rounds: int, kept: list[int], drawn: int
) -> None:
    assert sampled(sampler, monkeypatch, useful, 4, rounds) == (kept, drawn, drawn - 4)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ValueError("refuses: HTTP 404"), "refuses: HTTP 404"),
        (OSError("gone\nfor good"), "gone for good"),
        (ZeroDivisionError("by zero"), "objective.reward failed: ZeroDivisionError: by zero"),
        (RecursionError(), "objective.reward failed: RecursionError: RecursionError"),
    ],
)
def test_any_error_of_a_reward_is_a_rollout_error_of_one_line(
    sampler: GroupSampler, error: Exception, said: str
) -> None:
    def failing(samples: object) -> list[float]:
        raise error

    with pytest.raises(RolloutError) as found:
        replace(sampler, reward=failing)._rewards([SAMPLE])
    assert str(found.value) == said


def test_a_request_to_stop_is_no_error_of_a_reward(sampler: GroupSampler) -> None:
    def stopped(samples: object) -> list[float]:
        raise Interrupted("SIGTERM")

    with pytest.raises(Interrupted):
        replace(sampler, reward=stopped)._rewards([SAMPLE])


def test_rows_that_a_verifier_cannot_compare_with_are_named(sampler: GroupSampler) -> None:
    def row(response: str) -> Example:
        ids = sampler.tokenizer.encode(response)
        return continuation(sampler.tokenizer.encode("1 + 1 ="), [*ids, sampler.tokenizer.eos_id], "sums.jsonl:7")

    sampler.check(row(" 2"))
    with pytest.raises(ValueError, match=r"^sums\.jsonl:7: objective\.reward: answer holds no number: 'two'"):
        sampler.check(row(" two"))
    with pytest.raises(ValueError, match=r"sums\.jsonl:7: objective\.name grpo and opd need rows with a prompt"):
        sampler.check(Example([5], [True], "sums.jsonl:7"))


def conversation(sampler: GroupSampler, *responses: dict[str, Any]) -> Example:
    """A row in which results follow the responses that call tools, and another question the others."""
    messages: list[dict[str, Any]] = [{"role": "user", "content": "2 + 2?"}]
    for response in responses:
        messages += [{"role": "assistant", **response}]
        messages += [{"role": "tool", "content": "4"} if "tool_calls" in response else {"role": "user", "content": "?"}]
    (pieces,) = encode_texts(render_training_texts(messages[:-1], TOOLS, encoding="0731"), sampler.tokenizer)
    return Example(*pieces, "chat.jsonl:1")


CALL = {"content": "", "tool_calls": [{"type": "function", "function": {"name": "add", "arguments": '{"xs": [2]}'}}]}
TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]
SAID = {"content": "It is 4"}


@pytest.mark.parametrize(
    ("responses", "reference"),
    [
        ([SAID], "It is 4"),
        ([CALL, SAID], "It is 4"),
        ([CALL, CALL, SAID, {"content": "to another question"}], "It is 4"),
        ([CALL], ""),
    ],
)
def test_with_tools_answers_are_compared_with_the_response_that_ends_the_row_s_calls(
    sampler: GroupSampler, responses: list[dict[str, Any]], reference: str
) -> None:
    task = RewardedPrompt.of(conversation(sampler, *responses))
    tools: Any = "those of a server"
    answer = SampledAnswer(list(task.responses[0]), [])
    using = replace(sampler, tools=tools)
    assert using._sample(using._group_prompt(task), answer).reference.text == reference
    sample = sampler._sample(sampler._group_prompt(task), answer)
    assert sample.reference == sample.answer


@pytest.mark.parametrize("metric", ["contains", "exact_match", "regex", "last_number"])
def test_a_row_without_text_to_compare_with_is_refused(sampler: GroupSampler, metric: str) -> None:
    section = GrpoConfig.model_validate({"name": "grpo", "reward": {"metric": metric}})
    strict = replace(sampler, section=section)
    with pytest.raises(
        ValueError, match=r"^chat\.jsonl:1: objective\.reward: answer is empty: nothing to compare with"
    ):
        strict.check(conversation(sampler, CALL, SAID))
    tools: Any = "those of a server"
    replace(strict, tools=tools).check(conversation(sampler, CALL, SAID))


@pytest.mark.parametrize("encoding", ["preview", "0731"])
def test_with_tools_a_row_whose_prompt_describes_none_is_refused(sampler: GroupSampler, encoding: Any) -> None:
    tools: Any = "those of a server"
    using = replace(sampler, tools=tools, encoding=encoding)

    def row(described: list[dict[str, Any]]) -> Example:
        messages = [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", **SAID}]
        (pieces,) = encode_texts(render_training_texts(messages, described, encoding=encoding), sampler.tokenizer)
        return Example(*pieces, "chat.jsonl:1")

    using.check(row(TOOLS))
    replace(using, tools=None).check(row([]))
    with pytest.raises(ValueError, match=r"^chat\.jsonl:1: objective\.tools\.url needs prompts that describe tools"):
        using.check(row([]))


# epsilon, epsilon_high, aggregation, scale_rewards, resample, sequence_ratio, clips_weight
PUBLISHED = {
    # arXiv 2402.03300: mean over answers of means over tokens, advantages divided by the standard deviation
    "grpo": (0.2, 0.2, "sequence_mean", True, 0, False, False),
    # arXiv 2503.20783: neither the length of an answer nor the standard deviation divides
    "dr_grpo": (0.2, 0.2, "constant", False, 0, False, False),
    # arXiv 2503.14476: clip-higher 0.28, mean over tokens, dynamic sampling, here of at most 3 rounds
    "dapo": (0.2, 0.28, "token_mean", True, 3, False, False),
    # arXiv 2507.18071: ratios of sequences, 3e-4 and 4e-4
    "gspo": (3e-4, 4e-4, "sequence_mean", True, 0, True, False),
    # arXiv 2506.13585: mean over tokens, the weight is clipped above alone
    "cispo": (0.2, 4.0, "token_mean", True, 0, False, True),
}


def test_variants_have_the_published_numbers() -> None:
    assert {name: VariantDefaults(*values) for name, values in PUBLISHED.items()} == VARIANTS  # type: ignore[arg-type]
