"""Simulated steps: the bubble matches the schedules' formulas, and parts add up."""

from dataclasses import replace

import pytest

from seektune.model.draft_flops import draft_flops
from seektune.parallel.layer_split import bubble
from seektune.parallel.pipeline_order import schedule_actions
from seektune.planner.hardware import known_gpu
from seektune.planner.job import Layout
from seektune.planner.memory import first_ranks
from seektune.planner.messages import exchange, expert_messages
from seektune.planner.time import StepTime, step_time
from seektune.planner.timeline import StageTime, bubble_share, simulate
from tests.places import FLASH, FLASH_LORA, RECIPES

from .jobs import layout

H100 = known_gpu("h100-80gb", 128)
FLASH_CHAT = RECIPES / "deepseek_v4_flash_chat.yaml"


def step(*words: str) -> StepTime:
    planned = layout(FLASH, 128, *words)
    return step_time(planned, H100, first_ranks(planned))


@pytest.mark.parametrize("schedule", ["1f1b", "interleaved1f1b", "zbv", "dualpipev"])
def test_bubble_of_an_even_pipeline_matches_its_formula(schedule: str) -> None:
    stages = 4 if schedule == "1f1b" else 8
    times = {stage: StageTime(1.0, 1.0, 1.0, 0.0) for stage in range(stages)}
    pieces = simulate(schedule_actions(schedule, 4, stages, 8), times)
    assert bubble_share(pieces) == pytest.approx(bubble(schedule, 4, stages, 8))
    assert len({(p.process, p.begin) for p in pieces}) == len(pieces), "a process does one thing at a time"


def test_messages_increase_the_bubble() -> None:
    quick, slow = (
        bubble_share(simulate(schedule_actions("1f1b", 4, 4, 8), {s: StageTime(1.0, 1.0, 1.0, send) for s in range(4)}))
        for send in (0.0, 0.5)
    )
    assert quick < slow


def test_recompute_does_not_change_model_flops() -> None:
    none, block = step("parallel.recompute=none"), step("parallel.recompute=block")
    assert none.flops == block.flops
    assert none.seconds < block.seconds
    assert sum(none.arithmetic.values()) < sum(block.arithmetic.values())
    assert 0 < block.mfu(H100) < none.mfu(H100) < 0.45


@pytest.mark.slow
def test_muon_takes_at_most_3_percent_of_a_step_of_4_million_tokens() -> None:
    """On the published job's 128 GPUs; docs/optimizers.md says 1.8."""
    found = step("optimizer.name=muon", "batch.length=4096", "batch.global_size=1024")
    assert found.tokens == 2**22
    assert round(found.optimizer / found.seconds, 3) == 0.018
    other = step("batch.length=4096", "batch.global_size=1024")
    assert round(other.optimizer / other.seconds, 3) == 0.001


def test_days_and_cost_follow_from_tokens_per_second() -> None:
    found = step()
    assert found.days(found.tokens_per_s * 86400) == pytest.approx(1)
    assert found.cost(found.tokens_per_s * 3600, 2.0, 128) == pytest.approx(256)


@pytest.mark.slow
def test_communication_time_scales_with_the_network() -> None:
    planned = layout(FLASH, 128)
    ranks = first_ranks(planned)
    fast, slow = (step_time(planned, replace(H100, network=rate), ranks) for rate in (50e9, 25e9))
    # ep 32 spans four nodes, and so does FSDP2
    assert slow.communication["ep"] == pytest.approx(2 * fast.communication["ep"], rel=0.05)
    assert slow.communication["fsdp"] == pytest.approx(2 * fast.communication["fsdp"])
    assert slow.arithmetic == fast.arithmetic


def ep_seconds(planned: Layout, **assumed: float) -> float:
    cluster = replace(H100, assumed=tuple(assumed.items()))
    return step_time(planned, cluster, first_ranks(planned)).communication["ep"]


def test_messages_between_experts_hide_behind_the_shared_expert_as_far_as_it_is_assumed() -> None:
    planned = layout(FLASH, 128)
    none, half, all_ = (ep_seconds(planned, ep_overlap=share) for share in (0.0, 0.5, 1.0))
    assert none == ep_seconds(planned)
    assert none - half == pytest.approx(half - all_), "proportional, while the messages take longer"
    shared = step_time(planned, H100, first_ranks(planned)).arithmetic["experts"] / 7
    assert none - all_ <= shared * 1.001
    # in parts, the outputs are hidden too, behind all experts
    parts = layout(FLASH, 128, "parallel.ep_parts=2")
    counts = ep_seconds(parts, latency_s=0) - ep_seconds(planned, latency_s=0)
    assert 0 < counts < 1e-4 * none, "two numbers of pairs for an expert instead of one"
    latencies = none - ep_seconds(planned, latency_s=0)
    again = 1 if planned.job.parallel.recompute == "block" else 0
    more = (3 * (1 + again) + 3) / (4 * (1 + again) + 3)
    assert ep_seconds(parts) - none - counts == pytest.approx(latencies * more), "twice as many, but for the counts"
    assert ep_seconds(parts, ep_overlap=1.0) < all_


@pytest.mark.parametrize("parts", [1, 2])
def test_messages_between_experts_are_tokens_weights_outputs_and_counts(parts: int) -> None:
    job = layout(FLASH, 128, f"parallel.ep_parts={parts}").job
    width, experts, pairs, layers = job.config.hidden_size, job.config.n_routed_experts, 6000, 3
    factors = {**H100.factors, "latency_s": 0.0}
    byte = exchange(1.0, 8, H100, factors)
    sent = expert_messages(job, 1000, layers, 8, H100, factors)
    assert sent.counts == pytest.approx(layers * 8 * experts * parts * byte)
    assert sent.tokens == sent.gradients == pytest.approx(layers * pairs * (2 * width + 4) * byte)
    assert sent.outputs == pytest.approx(layers * pairs * 4 * width * byte)
    slow = expert_messages(job, 1000, layers, 8, H100, factors | {"latency_s": 1.0})
    assert slow.counts - sent.counts == pytest.approx(layers)
    assert slow.tokens - sent.tokens == pytest.approx(layers * parts * 2)
    assert slow.outputs - sent.outputs == pytest.approx(layers * parts)
    assert slow.forward(0.0) == pytest.approx(slow.counts + slow.tokens + slow.outputs)
    assert slow.backward(0.0) == pytest.approx(slow.gradients + slow.outputs), "counts are known in backward"


def test_fp8_messages_shorten_the_way_to_the_experts() -> None:
    """Of 2 + 4 bytes forward, recomputed and backward, a byte less 1/128 forward and recomputed."""
    plain, fp8 = (layout(FLASH, 128, f"parallel.ep_message_dtype={kind}") for kind in ("model", "fp8"))
    again = 1 if plain.job.parallel.recompute == "block" else 0
    pairs = 6 * plain.rows_at_a_time * plain.length / plain.dims.cp_size
    width = plain.job.config.hidden_size
    counts = (1 + again) * 8 * plain.job.config.n_routed_experts / (pairs * width)
    expected = 1 - (1 + again) * (1 - 1 / 128) / ((2 + again) * (6 + 4 / width) + counts)
    assert ep_seconds(fp8, latency_s=0) / ep_seconds(plain, latency_s=0) == pytest.approx(expected)


def on_one_gpu(*words: str) -> StepTime:
    """Adapters on frozen FP4 and FP8."""
    planned = layout(FLASH_LORA, 1, "parallel.ep_size=1", "parallel.dp_replicate=1", *words)
    return step_time(planned, replace(H100, gpus=1), first_ranks(planned))


@pytest.mark.slow
def test_adapters_need_fewer_flops_and_read_frozen_weights() -> None:
    adapters, full = on_one_gpu("batch.length=2048"), step("batch.length=2048")
    # only the adapters have weight gradients; with 2,048 tokens the indexer selects all entries
    assert adapters.flops == pytest.approx(full.flops * 2 / 3, rel=0.01)
    once, again = on_one_gpu("batch.micro_size=8"), on_one_gpu("batch.micro_size=4")
    # 160 GB of FP4 and FP8 become 291 B numbers of bf16, written and read, in three passes of 32 micro-batches more
    expected = 3 * 32 * (160e9 + 4 * 291e9) / (0.7 * H100.memory_rate)
    assert again.memory - once.memory == pytest.approx(expected, rel=0.02)


@pytest.mark.slow
def test_streamed_weights_are_read_from_disk_in_every_pass() -> None:
    held, streamed = on_one_gpu(), on_one_gpu("model.offload=stream")
    # 32 micro-batches, each with forward, recomputation and backward
    assert streamed.seconds - held.seconds == pytest.approx(3 * 32 * 157e9 / 3e9, rel=0.02)


def of_a_drafter(anchors: int) -> StepTime:
    """Of the chat recipe on one node."""
    words = ["model.quantized=true", "train.drafter=true", "parallel.pp_size=1", "parallel.ep_size=8"]
    words += ["batch.global_size=16", "batch.micro_size=2", f"train.drafter_anchors={anchors}"]
    planned = layout(FLASH_CHAT, 8, *words)
    return step_time(planned, replace(H100, gpus=8), first_ranks(planned))


@pytest.mark.slow
def test_drafts_take_time_and_the_backbone_makes_no_logits() -> None:
    few, many = of_a_drafter(32), of_a_drafter(96)
    config = layout(FLASH_CHAT, 8, "parallel.pp_size=1", "parallel.ep_size=8").job.config
    some, more = (draft_flops(config, 0, anchors) for anchors in (32, 96))
    useful = [sum(each.forward.values()) + sum(each.backward.values()) for each in (some, more)]
    micro_batches = 16 // 2
    assert many.flops - few.flops == pytest.approx(micro_batches * (useful[1] - useful[0]))
    assert many.seconds > few.seconds
    heads = some.forward["head"] + some.backward["head"]
    assert few.arithmetic["head"] * H100.factors["matmul"] * H100.flops == pytest.approx(heads)
