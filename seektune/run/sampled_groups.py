"""Groups of sampled answers to training prompts, with their rewards."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from seektune.data.chat_format.choices import EncodingName
from seektune.data.chat_format.encode import describes_tools
from seektune.data.example import Example
from seektune.data.rollouts import Rollout, RolloutError, advantages, all_equal
from seektune.data.tokenizer import Tokenizer
from seektune.generate.engine import Decodes
from seektune.generate.request import Request
from seektune.generate.sampling_params import Sampling
from seektune.io.text import one_line
from seektune.rewards.answer_metrics import Answer
from seektune.rewards.reward import Reward, check_reference
from seektune.rewards.sample import RewardSample
from seektune.run.objective import resampling_rounds, scales_rewards
from seektune.run.responses import answer_of, mode_of
from seektune.run.rewarded_prompt import RewardedPrompt
from seektune.run.sampled_answers import Progress, SampledAnswer
from seektune.run.tool_turns import ToolTurns, sample_answers
from seektune.train.rollout_objectives import GrpoConfig, RolloutConfig


@dataclass(frozen=True)
class SampledGroups:
    """The answers of a rollout, group by group."""

    rollouts: list[Rollout]
    drawn: int
    """Prompts that were drawn for it."""
    dropped: int
    """Groups that were drawn and left out, as their rewards were all equal."""


class _GroupPrompt(NamedTuple):
    """What the answers of a group share when they are rewarded."""

    text: str
    mode: str | None
    """Of the chat format, in which the answers are read; None for other texts."""
    reference: Answer


@dataclass(frozen=True)
class GroupSampler:
    """Samples and rewards answers."""

    section: RolloutConfig
    tokenizer: Tokenizer
    encoding: EncodingName
    reward: Reward
    length: int
    """Maximum tokens of a prompt and its answer."""
    seed: int
    tools: ToolTurns | None = None
    """Runs the tool calls of answers."""

    def sample(
        self, model: Decodes, task: Callable[[int], RewardedPrompt], start: int, groups: int, progress: Progress
    ) -> SampledGroups:
        """Answers to `groups` prompts of the endless order of tasks from `start` on, in that order.

        Groups with equal rewards are replaced by those of the following prompts, up to the maximum number of rounds;
        then the first of them fill what is missing, at their own places, so that no step of the rollout has them all.

        Raises:
            RolloutError: a reward failed.
        """
        drawn: list[list[Rollout]] = []
        useful: list[int] = []
        for _ in range(1 + resampling_rounds(self.section)):
            numbers = range(start + len(drawn), start + len(drawn) + groups - len(useful))
            drawn += self._groups(model, [task(number) for number in numbers], numbers.start, progress)
            useful = [place for place, group in enumerate(drawn) if not all_equal([each.reward for each in group])]
            if len(useful) == groups:
                break
        equal = [place for place in range(len(drawn)) if place not in useful]
        kept = sorted([*useful, *equal][:groups])
        rollouts = [each for place in kept for each in drawn[place]]
        return SampledGroups(rollouts, len(drawn), len(drawn) - groups)

    def rewarded(
        self, model: Decodes, tasks: Sequence[RewardedPrompt], start: int, progress: Progress
    ) -> list[Rollout]:
        """One answer to each task, with its reward.

        Raises:
            RolloutError: a reward failed.
        """
        return [group[0] for group in self._groups(model, tasks, start, progress, size=1)]

    def _groups(
        self, model: Decodes, tasks: Sequence[RewardedPrompt], start: int, progress: Progress, size: int | None = None
    ) -> list[list[Rollout]]:
        """A group of answers to each task; the seed of an answer depends on its place in the order of tasks alone."""
        size = size or self.section.group_size
        asked = [task for task in tasks for _ in range(size)]
        requests = [self._request(task, start * size + number) for number, task in enumerate(asked)]
        answers = sample_answers(model, requests, progress, self.tools)
        prompts = [prompt for task in tasks for prompt in [self._group_prompt(task)] * size]
        samples = [self._sample(prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)]
        rewards = self._rewards(samples)
        found = [self._rollout(*each) for each in zip(asked, answers, rewards, strict=True)]
        groups = [found[place : place + size] for place in range(0, len(found), size)]
        return [self._with_advantages(group) for group in groups]

    def check(self, example: Example) -> None:
        """Check that the answers to a row can be rewarded.

        Raises:
            ValueError: the row has no prompt, or none that describes tools for a run with them; or a verifier cannot
                compare with its response. The message names it.
        """
        task = RewardedPrompt.of(example)
        prompt = self._group_prompt(task)
        if self.tools is not None and not describes_tools(prompt.text, self.encoding):
            raise ValueError(f"{example.name}: objective.tools.url needs prompts that describe tools (tools of a row)")
        try:
            check_reference(self.section.rewards, prompt.reference)
        except ValueError as error:
            raise ValueError(f"{example.name}: objective.reward: {error}") from None

    def _rewards(self, samples: Sequence[RewardSample]) -> Sequence[float]:
        try:
            return self.reward(samples)
        except (OSError, ValueError) as error:
            raise RolloutError(one_line(error)) from error
        except Exception as error:
            raise RolloutError(f"objective.reward failed: {type(error).__name__}: {one_line(error)}") from error

    def _request(self, task: RewardedPrompt, number: int) -> Request:
        temperature = self.section.temperature
        return Request(
            task.prompt,
            min(self.section.max_new_tokens, self.length - len(task.prompt)),
            Sampling(temperature),
            frozenset({self.tokenizer.eos_id}),
            seed=(self.seed << 31) + number,
            logprob_temperature=temperature,
        )

    def _group_prompt(self, task: RewardedPrompt) -> _GroupPrompt:
        mode = mode_of(task.prompt, self.tokenizer)
        return _GroupPrompt(self.tokenizer.decode(task.prompt), mode, self._reference(task, mode))

    def _sample(self, prompt: _GroupPrompt, answer: SampledAnswer) -> RewardSample:
        return RewardSample(
            prompt.text,
            self._answer(None if answer.truncated else prompt.mode, answer.ids[answer.response :]),
            prompt.reference,
            answer.truncated,
            self.tokenizer.decode(answer.ids),
        )

    def _reference(self, task: RewardedPrompt, mode: str | None) -> Answer:
        """The row's first response; with tools the first that calls none, or its last."""
        responses = [self._answer(mode, ids) for ids in task.responses]
        if self.tools is None:
            return responses[0]
        return next((each for each in responses if not each.calls), responses[-1])

    def _answer(self, mode: str | None, ids: Sequence[int]) -> Answer:
        text = self.tokenizer.decode([token for token in ids if token != self.tokenizer.eos_id])
        return answer_of(text, mode, self.encoding)

    def _rollout(self, task: RewardedPrompt, answer: SampledAnswer, reward: float) -> Rollout:
        section = self.section
        overlong = section.overlong if isinstance(section, GrpoConfig) else "keep"
        if isinstance(section, GrpoConfig) and overlong == "penalize":
            reward = reward - overlong_penalty(answer.sampled, answer.truncated, section)
        return Rollout(
            task.prompt,
            answer.ids,
            answer.logprobs,
            reward,
            truncated=answer.truncated,
            masked=answer.truncated and overlong == "mask",
            dataset=task.dataset,
            taught=answer.taught,
            calls=answer.calls,
        )

    def _with_advantages(self, group: list[Rollout]) -> list[Rollout]:
        found = advantages([each.reward for each in group], scales_rewards(self.section))
        return [replace(each, advantage=advantage) for each, advantage in zip(group, found, strict=True)]


def overlong_penalty(tokens: int, truncated: bool, section: GrpoConfig) -> float:
    """DAPO's soft overlong punishment: 0 before the buffer, then rising linearly to 1 at the maximum (equation 13)."""
    if truncated:
        return 1.0
    beyond = tokens - (section.max_new_tokens - section.overlong_buffer)
    return max(beyond, 0) / section.overlong_buffer
