"""The steps of a run that trains on answers which its model samples, and their agreement with the training forward.

Shapes: B rows, T tokens.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from time import perf_counter
from typing import Any, TypedDict, TypeVar

from seektune.data.chat_format.choices import EncodingName
from seektune.data.examples import Examples
from seektune.data.loader import MOST_EXAMPLES, Loader
from seektune.data.rollouts import Rollout, RolloutError
from seektune.data.step_data import Share, StepData
from seektune.data.tokenizer import Tokenizer
from seektune.generate.engine import Decodes
from seektune.io.json_file import whole_number
from seektune.model.variants import encoding_of
from seektune.parallel.model import ParallelModel
from seektune.rewards.config import ToolServerConfig
from seektune.rewards.json_server import JsonServer
from seektune.rewards.reward import make_reward
from seektune.rewards.tool_server import ToolServer
from seektune.run.context import RunContext
from seektune.run.data import TrainData
from seektune.run.decoding import decoding_obstacle, run_decoding
from seektune.run.logprob_mismatch import mismatch
from seektune.run.rewarded_prompt import RewardedPrompt
from seektune.run.rollout_batches import columns_of, facts, micro_batches
from seektune.run.sampled_groups import GroupSampler, SampledGroups
from seektune.run.tool_turns import ToolTurns
from seektune.sequence import Batch
from seektune.train.rollout_objectives import RolloutConfig

T = TypeVar("T")


def make_sampler(run: RunContext, data: TrainData, section: RolloutConfig) -> GroupSampler:
    """What samples and rewards the answers of a run, after a check of all its rows; collective.

    Raises:
        ValueError: the layout of the processes cannot decode, a reward is not installed, or a row cannot be rewarded.
    """
    obstacle = decoding_obstacle(run.mesh.dims, run.recipe.parallel)
    if obstacle is not None:
        raise ValueError(f"objective.name {section.name} decodes, and {obstacle}")
    reward = make_reward(section.rewards, run.stop_alone_if_signalled)
    encoding = encoding_of(run.config)
    length = run.recipe.batch.length
    tools = _tool_turns(section.tools, data.tokenizer, encoding, length, run.stop_alone_if_signalled)
    sampler = GroupSampler(section, data.tokenizer, encoding, reward, length, run.recipe.seed, tools)
    assert isinstance(data.loader, Loader), "checked with the data"
    rows = [*data.loader.mixture.datasets, *data.held_out]
    ranks = run.mesh.ranks
    ranks.each(lambda: _check_rows(sampler, rows, ranks.rank, ranks.count))
    return sampler


def _tool_turns(
    section: ToolServerConfig, tokenizer: Tokenizer, encoding: EncodingName, length: int, stop: Callable[[], None]
) -> ToolTurns | None:
    if section.url is None:
        return None
    server = JsonServer("tool", "calls", section.url, section.timeout, section.retries, stop)
    tools = ToolServer(server, section.max_result_bytes, section.concurrency)
    return ToolTurns(tools, section.max_turns, tokenizer, encoding, length)


def _check_rows(sampler: GroupSampler, datasets: Sequence[Examples], first: int, step: int) -> None:
    for examples in datasets:
        for number in range(first, len(examples), step):
            sampler.check(examples.example(number))


def decode_rewarded(
    run: RunContext, model: ParallelModel, body: Callable[[Decodes], T], alive: Callable[[], None] = lambda: None
) -> T:
    """The result of a body that rewards what it decodes; as `run_decoding`.

    Raises:
        RolloutError: a reward failed, on every process.
    """

    def outcome(decodes: Decodes) -> T | RolloutError:
        try:
            return body(decodes)
        except RolloutError as error:
            return error  # a value, which processes exchange as it is

    found = run_decoding(run, model, outcome, alive)
    if isinstance(found, RolloutError):
        raise found
    return found


class RolloutState(TypedDict):
    """The position between two steps."""

    position: int
    """Prompts drawn."""
    rollouts: list[dict[str, Any]]
    """Answers that were sampled and that no step has taken yet."""
    values: dict[str, float]
    """What is logged of their rollout."""


class RolloutStream:
    """Steps of sampled answers: every `steps_per_rollout` steps the model as it is answers the next prompts.

    Answers depend on the weights, the seed and the position alone, so that an interrupted rollout is repeated exactly.
    """

    def __init__(self, run: RunContext, model: ParallelModel, data: TrainData, sampler: GroupSampler):
        assert isinstance(data.loader, Loader), "checked with the data"
        self._run = run
        self._model = model
        self._mixture = data.loader.mixture
        self._batch = data.loader.batch
        self._pad_id = data.tokenizer.pad_id
        self._sampler = sampler
        self._share = Share(run.mesh.coords.dp, run.mesh.dims.data_size)
        self._columns = columns_of(run.recipe)
        self._position = 0
        self._rollouts: list[Rollout] = []
        self._values: dict[str, float] = {}

    def next_step(self) -> StepData:
        """The next `global_size` answers; samples new ones if none are left.

        Raises:
            ArithmeticError: the model gives no number.
            Interrupted: a signal asked to stop; the position is that before the rollout.
            RolloutError: rewards could not be had, on every process.
        """
        if not self._rollouts:
            self._sample()
        size = self._batch.global_size
        data = StepData.of(self._micro_batches(self._rollouts[:size]), self._share)
        values = self._values
        self._rollouts = self._rollouts[size:]
        return replace(data, values=values)

    def state_dict(self) -> RolloutState:
        """The position between two steps."""
        rollouts = [asdict(each) for each in self._rollouts]
        return {"position": self._position, "rollouts": rollouts, "values": self._values}

    def load_state_dict(self, state: RolloutState) -> None:
        """Continue exactly at the position of another stream of the same rows.

        Raises:
            ValueError: the state is damaged.
        """
        self._position = whole_number(state, "position", 0, MOST_EXAMPLES)
        try:
            self._rollouts = [Rollout(**each) for each in state["rollouts"]]
            self._values = dict(state["values"])
        except (KeyError, TypeError):
            raise ValueError("its rollouts are damaged") from None

    def _sample(self) -> None:
        began = perf_counter()
        section = self._sampler.section
        groups = self._batch.global_size * section.steps_per_rollout // section.group_size
        stop = self._run.stop_alone_if_signalled
        body = partial(self._sampler.sample, task=self._task, start=self._position, groups=groups, progress=stop)
        found: SampledGroups = decode_rewarded(self._run, self._model, body)
        seconds = perf_counter() - began
        values = {**facts(found, section), **self._mismatch(found.rollouts), "rollout_seconds": seconds}
        self._position += found.drawn
        self._rollouts = found.rollouts
        self._values = values

    def _task(self, position: int) -> RewardedPrompt:
        """The task at a position of the endless order of training rows."""
        (number,) = self._mixture.draw(position, position + 1)
        return RewardedPrompt.of(self._mixture.example(int(number)), self._mixture.dataset_of(int(number)))

    def _mismatch(self, rollouts: Sequence[Rollout]) -> dict[str, float]:
        """How far the training forward's probabilities of the tokens are from those that they were sampled with."""
        size = self._batch.global_size
        steps = [rollouts[start : start + size] for start in range(0, len(rollouts), size)]
        batches = [batch for step in steps for batch in StepData.of(self._micro_batches(step), self._share).batches]
        temperature = self._sampler.section.temperature
        return mismatch(self._model, batches, temperature)

    def _micro_batches(self, rollouts: Sequence[Rollout]) -> list[Batch]:
        return micro_batches(rollouts, self._batch.micro_size, self._pad_id, self._columns)
