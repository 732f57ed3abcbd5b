"""Runs that learn from rewards of sampled answers: what they log, stopped and resumed, and what is refused."""

import json
import os
import re
import signal
import threading
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from seektune.data.example import Example
from seektune.data.rollouts import RolloutError
from seektune.io.jsonl import as_line
from seektune.io.run_files import REPORT
from seektune.parallel.process_group import ProcessSlot
from seektune.recipe.load import load_recipe
from seektune.recipe.recipe import Recipe
from seektune.rewards.sample import RewardSample
from seektune.run import rollouts, sampled_groups, tool_turns
from seektune.run.objective_data import check_objective_data
from seektune.run.rewarded_prompt import RewardedPrompt
from seektune.run.sampled_groups import overlong_penalty
from seektune.signals import Interrupted
from seektune.train import trainer
from seektune.train.checkpoints import complete_checkpoints
from seektune.train.rollout_objectives import GrpoConfig
from seektune.workflows import train as workflow
from tests.distributed.workers import run_workers
from tests.places import RECIPES
from tests.read_run import untimed

LORA = {"targets": ["attn"], "rank": 2, "alpha": 4}


def even(samples: Any) -> list[float]:
    """A reward that differs within groups of a random model: the share of even bytes of the answer."""
    return [sum(x % 2 == 0 for x in each.answer.text.encode()) / 100 for each in samples]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports are not drawn, and every reward is `even`."""

    def write(folder: Path, texts: object) -> Path:
        (folder / REPORT).touch()
        return folder / REPORT

    monkeypatch.setattr(workflow, "write_report", write)
    monkeypatch.setattr(rollouts, "make_reward", lambda *_: even)


@pytest.fixture
def rewarded(recipe: Any, tmp_path: Path) -> Any:
    """Makes a recipe of three steps of two groups; two steps share a rollout. Changes are by dotted key."""
    rows = [{"prompt": f"{a} + 1 =", "completion": f" {a + 1}"} for a in range(12)]
    (tmp_path / "sums").mkdir()
    for name, part in (("train", rows[:9]), ("validation", rows[9:])):
        (tmp_path / "sums" / f"{name}.jsonl").write_text("".join(map(as_line, part)), encoding="utf-8")

    def make(**changes: Any) -> Recipe:
        values = {
            "data": {"kind": "prompt_completion", "path": str(tmp_path / "sums")},
            "objective": {
                "name": "grpo",
                "variant": "dapo",
                "reward": {"metric": "exact_match"},
                "group_size": 4,
                "max_new_tokens": 5,
                "steps_per_rollout": 2,
            },
            "loss": {"mtp_weight": 0},
            "batch": {"global_size": 8, "micro_size": 4, "length": 24},
            "evaluate": {"every": 2, "tasks": []},
        }
        return recipe(**values | changes)

    return make


def train(recipe: Recipe) -> Path:
    return workflow.train(recipe, "run", (), Path(recipe.run_dir or "").parent / "cache")


@pytest.mark.slow
@pytest.mark.parametrize("where", ["between the steps of a rollout", "in a rollout"])
def test_a_stopped_run_resumes_with_the_same_bytes(
    rewarded: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """Also: what is logged of a step and of held-out rows."""
    whole = train(rewarded(run_dir=str(tmp_path / "whole"), model__numerics="released"))
    steps = untimed(whole, "metrics.jsonl")
    # two steps on one rollout, and the first of the next
    assert steps[0]["reward"] == steps[1]["reward"] != steps[2]["reward"]
    for line in steps:
        assert 0 < line["mismatch_mean"] <= line["mismatch_max"] < 1e-6
        assert line["mismatch_share"] == 0
        assert 1 <= line["answer_tokens"] <= 5
    # the first step is on-policy, the second has moved from the model that sampled
    assert steps[0]["rollout_kl"] < 1e-9 < steps[1]["rollout_kl"]
    for line in untimed(whole, "validation.jsonl"):
        assert line["loss"] == -line["reward"]
        assert line["reward_low"] <= line["reward"] <= line["reward_high"]
    wanted = rewarded(run_dir=str(tmp_path / "parts"), model__numerics="released")
    _stop(monkeypatch, where)
    with pytest.raises(Interrupted):
        train(wanted)
    monkeypatch.undo()
    monkeypatch.setattr(workflow, "write_report", lambda folder, texts: folder / REPORT)
    monkeypatch.setattr(rollouts, "make_reward", lambda *_: even)
    parts = train(wanted)
    for name in ("metrics.jsonl", "validation.jsonl"):
        assert untimed(parts, name) == untimed(whole, name)
    product = "model/model.safetensors"
    assert (parts / product).read_bytes() == (whole / product).read_bytes()


def _stop(monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    """Send a signal in the first step, or while answers of the third step are rewarded."""
    step = trainer.train_step
    sample = rollouts.RolloutStream._sample

    def stopping_step(*arguments: Any) -> Any:
        if arguments[3] == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(*arguments)

    def stopping_sample(stream: Any) -> None:
        if stream.state_dict()["position"]:
            os.kill(os.getpid(), signal.SIGTERM)
        sample(stream)

    if where == "in a rollout":
        monkeypatch.setattr(rollouts.RolloutStream, "_sample", stopping_sample)
    else:
        monkeypatch.setattr(trainer, "train_step", stopping_step)


@pytest.mark.slow
def test_a_failed_reward_saves_and_kl_is_measured(
    rewarded: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a step, and as held-out answers are rewarded: after two steps."""
    calls: list[int] = []
    failures: dict[int, Exception] = {3: KeyError("score"), 5: ValueError("HTTP 404")}

    def failing(samples: list[RewardSample]) -> list[float]:
        calls.append(len(samples))
        if len(calls) in failures:
            raise failures[len(calls)]
        return even(samples)

    monkeypatch.setattr(rollouts, "make_reward", lambda *_: failing)
    objective = rewarded().objective.model_dump() | {"steps_per_rollout": 1, "beta": 0.1, "resample": 0}
    recipe = rewarded(objective=objective, lora=LORA, evaluate__every=2)
    with pytest.raises(RolloutError, match=r"KeyError: 'score'\. The state before this step is saved in .*step-000001"):
        train(recipe)
    assert len(complete_checkpoints(tmp_path / "run" / "checkpoints")) == 1
    with pytest.raises(RolloutError, match=r"HTTP 404\. The state after step 2 is saved in .*step-000002"):
        train(recipe)
    assert calls == [3, 8, 8, 8, 3]
    assert len(complete_checkpoints(tmp_path / "run" / "checkpoints")) == 2
    folder = train(recipe)
    assert [line["kl"] > 1e-12 for line in untimed(folder, "metrics.jsonl")] == [False, True, True]
    assert [line["step"] for line in untimed(folder, "validation.jsonl")] == [0, 2, 3]


def worker(recipe: Recipe, failing: bool) -> str:
    """A run in one of several processes; returns its error."""

    def reward(samples: Any) -> list[float]:
        if failing and len(samples) > 3:
            raise ValueError("HTTP 404")
        return even(samples)

    rank = dist.get_rank()
    slot = ProcessSlot(dist.get_world_size(), rank, worker=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(workflow, "process_group", lambda _: nullcontext())
        patch.setattr(rollouts, "make_reward", lambda *_: reward)
        try:
            workflow.train(recipe, "run", (), Path(recipe.run_dir or "").parent / "cache", slot)
        except Exception as error:
            return f"{type(error).__name__}: {error}"
    return ""


@pytest.mark.slow
@pytest.mark.parametrize(
    "parallel", [{"ep_size": 2, "dp_replicate": 2, "dp_shard": 1}, {"pp_size": 2}], ids=["ep", "pp"]
)
def test_two_processes_learn_what_one_does(rewarded: Any, tmp_path: Path, parallel: dict[str, Any]) -> None:
    """And with batch-invariant kernels the log-probabilities of decoding are those of training."""
    shared = {"evaluate__before": False, "evaluate__after": False, "model__numerics": "released"}
    one = train(rewarded(run_dir=str(tmp_path / "one"), **shared, model__batch_invariant=True))
    changes = {"run_dir": str(tmp_path / "two"), "parallel": parallel}
    made = rewarded(**changes, **shared, model__batch_invariant=True)
    assert run_workers(2, worker, made, False) == ["", ""]
    for name in ("metrics.jsonl", "validation.jsonl"):
        for mine, theirs in zip(untimed(tmp_path / "two", name), untimed(one, name), strict=True):
            for key in ("reward", "answer_tokens", "grad_norm", "equal_groups_dropped"):
                if key in theirs:
                    assert mine[key] == pytest.approx(theirs[key], rel=1e-3), (name, key)
            assert mine.get("mismatch_logprob_max", 0) == theirs.get("mismatch_logprob_max", 0) == 0


@pytest.mark.slow
def test_a_failed_reward_ends_all_processes_with_the_same_line(rewarded: Any, tmp_path: Path) -> None:
    made = rewarded(parallel={"ep_size": 2, "dp_replicate": 2, "dp_shard": 1})
    first, second = run_workers(2, worker, made, True)
    assert first == second
    assert re.match(r"RolloutError: HTTP 404\. The state before this step is saved in .*step-000000", first)
    assert len(complete_checkpoints(tmp_path / "run" / "checkpoints")) == 1


class Echo(BaseHTTPRequestHandler):
    """A tool server that repeats the arguments of each call; it fails from its `last` request on."""

    def do_POST(self) -> None:
        server: Any = self.server
        server.requests += 1
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(404 if server.requests > server.last else 200)
        self.end_headers()
        found = [
            {"role": "tool", "tool_call_id": each["id"], "content": each["function"]["arguments"]}
            for each in body["tool_calls"]
        ]
        self.wfile.write(json.dumps({"messages": found}).encode())

    def log_message(self, *_: Any) -> None:
        """Nothing is printed."""


@pytest.fixture
def echo() -> Iterator[Any]:
    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), Echo)
    server.requests = 0
    server.last = 10**9
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def calling(text: str, mode: str | None, encoding: str) -> dict[str, Any]:
    """Every second response of the random model as one with a tool call."""
    call = {"type": "function", "function": {"name": "echo", "arguments": json.dumps({"text": text[:2]})}}
    return {"content": text, "tool_calls": [call] * (len(text) % 2)}


@pytest.mark.slow
def test_a_run_with_tools_resumes_exactly_and_a_failing_tool_server_saves(
    rewarded: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, echo: Any
) -> None:
    turns = [[{"role": "user", "content": f"{a}+1"}, {"role": "assistant", "content": f"{a + 1}"}] for a in range(4)]
    rows = [as_line({"messages": each}) for each in turns]
    for name in ("train", "validation"):
        (tmp_path / "sums" / f"{name}.jsonl").write_text("".join(rows), encoding="utf-8")
    sample = tool_turns.sample_responses

    def ended(model: Any, requests: Any, answers: Any, progress: Any) -> None:
        short = [replace(each, max_new_tokens=min(each.max_new_tokens, 4)) for each in requests]
        sample(model, short, answers, progress)
        for answer in answers:
            answer.truncated = False

    monkeypatch.setattr(tool_turns, "sample_responses", ended)
    monkeypatch.setattr(tool_turns, "read_message", calling)
    # the description of a tool is longer than all else here
    monkeypatch.setattr(sampled_groups, "describes_tools", lambda prompt, encoding: True)
    objective = {
        **rewarded().objective.model_dump(exclude_unset=True),
        "tools": {"url": f"http://127.0.0.1:{echo.server_port}/", "max_turns": 3, "retries": 0},
        "max_new_tokens": 12,
        "resample": 0,
        "steps_per_rollout": 1,
    }
    changes = {"objective": objective, "batch__length": 120, "steps": 2, "data__kind": "chat"}
    whole = train(rewarded(**changes, run_dir=str(tmp_path / "whole")))
    requests = echo.requests
    for line in untimed(whole, "metrics.jsonl"):
        assert line["tool_calls"] > 0
        assert line["tool_tokens"] > 3 * line["tool_calls"]
        assert line["answer_tokens"] <= 12
        assert line["mismatch_share"] == 0
        assert line["taught_tokens"] == pytest.approx(8 * line["answer_tokens"])
    echo.last = requests + requests // 2  # in a rollout
    wanted = rewarded(**changes, run_dir=str(tmp_path / "parts"))
    with pytest.raises(RolloutError, match=r"the tool server \S+ refuses the calls: HTTP 404\. The state .* saved"):
        train(wanted)
    echo.last = 10**9
    parts = train(wanted)
    assert untimed(parts, "metrics.jsonl") == untimed(whole, "metrics.jsonl")
    product = "model/model.safetensors"
    assert (parts / product).read_bytes() == (whole / product).read_bytes()


def test_the_task_of_a_row_is_what_is_before_its_first_response() -> None:
    example = Example([5, 6, 7, 8, 9, 10], [False, False, True, True, False, True], "row 3")
    assert RewardedPrompt.of(example) == RewardedPrompt((5, 6), ((7, 8), (10,)))
    with pytest.raises(ValueError, match=r"row 3: objective\.name grpo and opd need rows with a prompt"):
        RewardedPrompt.of(Example([5, 6], [True, True], "row 3"))


def test_overlong_answers_lose_reward_in_the_buffer() -> None:
    values = {"name": "grpo", "reward": {"metric": "math"}, "max_new_tokens": 20, "overlong_buffer": 10}
    section = GrpoConfig.model_validate(values)
    assert [overlong_penalty(tokens, False, section) for tokens in (3, 10, 15, 20)] == [0, 0, 0.5, 1]
    assert overlong_penalty(20, True, section) == 1


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"batch__pack": True}, "batch.pack must be false"),
        ({"batch__global_size": 12, "batch__micro_size": 4, "objective__group_size": 8}, "must be a multiple of"),
        ({"batch__length": 5}, "objective.max_new_tokens must be below batch.length"),
        ({"objective__beta": 0.1}, "objective.beta needs objective.reference_checkpoint, or lora.targets"),
        ({"objective__beta": 0.1, "lora": {**LORA, "adapter": "earlier"}}, "objective.beta needs lora.adapter null"),
        ({"batch__overlong": "split"}, "batch.overlong must be error or drop"),
        ({"batch__overlong": "cut"}, "batch.overlong must be error or drop"),
        ({"batch__stages": [{"from_step": 2, "length": 32}]}, "batch.stages is for objective.name cross_entropy"),
        ({"guard": {"spike_factor": 2.0}}, "guard.spike_factor must be null"),
        ({"loss": {"mtp_weight": 0, "z_weight": 1e-4}}, "loss.z_weight is for objective.name cross_entropy"),
        ({"objective__variant": "cispo", "objective__epsilon": 0.2}, "epsilon must be null"),
        ({"loss": {"mtp_weight": 0.1}}, "loss.mtp_weight must be 0"),
        ({"objective__reward": {"name": "servr"}}, "servr"),
        ({"objective__reward": {"metric": "maths"}}, "maths"),
        ({"objective__tools": {"url": "http://localhost:1"}}, "objective.tools.url needs data.kind chat"),
        ({"objective__tools": {"url": "localhost:1"}}, "url must begin with http:// or https://"),
        (
            {
                "objective__reward": {"name": "server", "url": "http://localhost:1"},
                "guard": {"step_timeout": 127},
            },
            "guard.step_timeout 127 s would end the run while objective.reward may still answer: 4 tries of 30 s ",
        ),
        ({"objective__tools": {"max_turns": 4}}, "tools.url is null but other keys of tools are set"),
    ],
)
def test_recipes_that_do_not_fit_are_refused(rewarded: Any, tmp_path: Path, changes: Any, said: str) -> None:
    place = tmp_path / "recipe.yaml"
    values = rewarded().model_dump(mode="json", exclude_unset=True)
    for key, value in changes.items():
        section, _, name = key.partition("__")
        values[section] = {**values[section], name: value} if name else value
    place.write_text(json.dumps(values), encoding="utf-8")
    with pytest.raises(ValueError, match=said):
        load_recipe(place)


def test_data_without_a_prompt_is_refused(rewarded: Any) -> None:
    with pytest.raises(ValueError, match=r"objective\.name grpo needs data\.kind chat or prompt_completion, not text"):
        train(rewarded(data__kind="text"))


def test_rows_without_effect_or_reward_are_refused_at_the_start(rewarded: Any, tmp_path: Path) -> None:
    data = {**rewarded().model_dump()["data"], "weight_column": "weight"}
    with pytest.raises(ValueError, match=r"data\.weight_column must be null: objective\.name grpo counts each answer"):
        check_objective_data(rewarded(data={key: data[key] for key in ("kind", "path", "weight_column")}))
    bad = as_line({"prompt": "1 + 2 =", "completion": " three"})
    (tmp_path / "sums" / "validation.jsonl").write_text(bad, encoding="utf-8")
    objective = {**rewarded().objective.model_dump(exclude_unset=True), "reward": {"metric": "last_number"}}
    with pytest.raises(ValueError, match=r"validation\.jsonl.*: objective\.reward: answer holds no number: 'three'"):
        train(rewarded(objective=objective))


def test_the_shipped_recipe_loads() -> None:
    section = load_recipe(RECIPES / "deepseek_v4_tiny_grpo.yaml").objective
    assert isinstance(section, GrpoConfig)
    assert section.rewards[0].name == "verifier"
