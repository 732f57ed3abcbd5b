"""DeepSeek's kernels equal ours where they apply, by their contracts, and one is chosen once for a machine."""

import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from seektune.kernels import batch_invariant_kernels, dispatch, quantize_fp4, quantize_fp8, training_kernels
from seektune.kernels.deepseek import choice, deep_gemm, deep_gemm_fp8, flash_mla, tile_kernels
from seektune.kernels.dispatch import Kernel
from seektune.sequence import SequenceLayout

from .fake_deepseek import modules
from .inputs import CASES, attention, leaf
from .twins import kernel, run

DOCUMENTS = torch.tensor([[1] * 10 + [2] * 2 + [0] * 2, [3] * 14])


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, module in modules().items():
        monkeypatch.setitem(sys.modules, name, module)


def close(found: list[Tensor], expected: list[Tensor], bound: float) -> None:
    for x, y in zip(found, expected, strict=True):
        assert x.shape == y.shape
        assert x.dtype == y.dtype
        scale = max(float(y.detach().abs().max()), 1e-3)
        torch.testing.assert_close(x.double() / scale, y.double() / scale, rtol=0, atol=bound)


@pytest.mark.parametrize("kind", ["window", "prefix", "chosen"])
@pytest.mark.parametrize("before", [0, 9])
def test_flash_mla_is_our_attention(kind: str, before: int):
    arguments = attention(kind, heads=64, width=512, before=before, documents=DOCUMENTS)(torch.bfloat16)
    assert not flash_mla.supports(*arguments), "it has no gradient"
    with torch.no_grad():
        assert flash_mla.supports(*arguments)
        found = flash_mla.sparse_attention(*arguments)
        close([found], [kernel("sparse_attention").reference(*arguments)], 2e-2)


def test_flash_mla_is_not_asked_for_other_shapes():
    with torch.no_grad():
        for heads, width, dtype in ((3, 512, torch.bfloat16), (64, 16, torch.bfloat16), (64, 512, torch.float32)):
            made = attention("window", heads=heads, width=width, documents=DOCUMENTS)(dtype)
            assert not flash_mla.supports(*made)


@pytest.mark.parametrize("shape", [(1,), (7, 3)])
def test_tile_kernels_sinkhorn_is_ours(shape: tuple[int, ...]):
    arguments = leaf(torch.float32, *shape, 4, 4), 20, 1e-6
    assert tile_kernels.supports(*arguments)
    close(run(tile_kernels.sinkhorn, arguments), run(kernel("sinkhorn").reference, arguments), 1e-5)
    assert not tile_kernels.supports(arguments[0].double(), 20, 1e-6)
    assert not tile_kernels.supports(torch.zeros(2, 3, 3), 20, 1e-6)


@pytest.mark.parametrize("counts", [[3, 0, 130, 128, 1], [0, 0, 1, 0, 0]])
def test_deep_gemm_products_are_ours(counts: list[int]):
    arguments = leaf(torch.bfloat16, sum(counts), 64), leaf(torch.bfloat16, 5, 128, 64), counts
    assert not deep_gemm.supports(*arguments), "weights have no gradient"
    arguments = arguments[0], arguments[1].detach(), counts
    assert deep_gemm.supports(*arguments)
    close(run(deep_gemm.expert_linear, arguments), run(kernel("expert_linear").reference, arguments), 1e-2)


@pytest.mark.parametrize(("pack", "generation"), [(quantize_fp8, 9), (quantize_fp8, 10), (quantize_fp4, 10)])
def test_deep_gemm_products_of_fp8_rows_are_ours(pack: Any, generation: int, monkeypatch: pytest.MonkeyPatch):
    packed = [pack(torch.randn(128, 256)) for _ in range(4)]
    weights = torch.stack([weight for weight, _ in packed]).unbind()
    scales = torch.stack([scale.view(torch.uint8) for _, scale in packed]).view(torch.float8_e8m0fnu).unbind()
    arguments = leaf(torch.bfloat16, 134, 256), weights, scales, [3, 0, 130, 1]
    monkeypatch.setattr(deep_gemm_fp8, "generation_of", lambda device: generation)
    assert deep_gemm_fp8.supports(*arguments)
    assert deep_gemm_fp8.trains(*arguments)
    expected = run(kernel("fp8_expert_linear").reference, arguments)
    close(run(deep_gemm_fp8.fp8_expert_linear, arguments), expected, 1e-2)
    assert not deep_gemm_fp8.supports(arguments[0], [w.clone() for w in weights], *arguments[2:]), "of several tensors"
    monkeypatch.setattr(deep_gemm_fp8, "generation_of", lambda device: 9)
    assert deep_gemm_fp8.supports(*arguments) == (pack is quantize_fp8), "Hopper has no FP4"


def test_every_row_of_the_dispatch_table_has_its_function():
    from seektune import kernels

    rows = {name: each for name, each in vars(kernels).items() if isinstance(each, Kernel) and each.deepseek}
    assert {each.deepseek for each in rows.values()} == {"flash_mla", "tile_kernels", "deep_gemm", "deep_gemm_fp8"}
    for name, each in rows.items():
        module = vars(choice)["import_module"](f"seektune.kernels.deepseek.{each.deepseek}")
        assert callable(vars(module)[name])
        assert callable(module.supports)
        assert callable(module.trains)
    assert set(rows) <= {*CASES, "expert_linear", "fp8_expert_linear"}


def made_up(**contents: object) -> ModuleType:
    module = ModuleType("made_up")
    vars(module).update(PACKAGE="made_up", **contents)
    return module


class Clock:
    """Says how long a call took, and how often it was asked."""

    def __init__(self, **seconds: float):
        self.seconds = seconds
        self.asked = 0

    def __call__(self, work: Callable[[], Any]) -> float:
        self.asked += 1
        return self.seconds[work()]


def pick(clock: Clock, file: Path, rows: int) -> str:
    theirs = made_up(double=lambda x: "theirs")
    arguments = (torch.zeros(rows, 8),)
    found = choice.choose("double", theirs, lambda x: "ours", arguments, False, choice.Choices(file), clock)
    return str(found(*arguments))


def test_the_faster_one_is_chosen_once_for_a_shape(tmp_path: Path):
    file = tmp_path / "cache" / "gpu.json"
    first = Clock(ours=2.0, theirs=1.0)
    assert pick(first, file, 100) == "theirs"
    # a later run on this machine, where the times would say otherwise
    later = Clock(ours=1.0, theirs=2.0)
    assert pick(later, file, 100) == "theirs"
    assert pick(later, file, 128) == "theirs", "rows vary from step to step; powers of two are chosen for"
    assert later.asked == 0
    assert pick(later, file, 129) == "ours"
    assert later.asked == 2
    assert sorted(json.loads(file.read_text()).values()) == ["made_up", "ours"]


def test_a_damaged_file_is_measured_again(tmp_path: Path):
    file = tmp_path / "gpu.json"
    for text in ("", "[", "[1]"):
        file.write_text(text)
        assert pick(Clock(ours=1.0, theirs=2.0), file, 4) == "ours"


def test_they_are_off_unless_switched_on(monkeypatch: pytest.MonkeyPatch):
    arguments = torch.zeros(3, 4, 4), 20, 1e-6
    ours = partial(max)
    monkeypatch.delenv(choice.SWITCH, raising=False)
    assert choice.implementation("sinkhorn", "tile_kernels", ours, arguments, False) is ours
    monkeypatch.setenv(choice.SWITCH, "1")
    # arguments that the kernel does not take
    assert choice.implementation("sinkhorn", "tile_kernels", ours, (torch.zeros(3, 3, 3), 20, 1e-6), False) is ours
    # a package that is not installed
    monkeypatch.setattr(tile_kernels, "PACKAGE", "no_such_package")
    assert choice.implementation("sinkhorn", "tile_kernels", ours, arguments, False) is ours


def failing(x: Tensor) -> Tensor:
    raise RuntimeError("no kernel image")


def test_a_choice_does_not_change_in_a_process(tmp_path: Path):
    file = tmp_path / "gpu.json"
    choices = choice.Choices(file)
    assert choices.get("a", lambda: "theirs") == "theirs"
    file.write_text(json.dumps({"a": "ours", "c": "ours"}))  # another job on this machine
    assert choices.get("b", lambda: "theirs") == "theirs"
    assert choices.get("a", lambda: "ours") == "theirs"
    assert json.loads(file.read_text()) == {"a": "ours", "b": "theirs", "c": "ours"}


def test_one_that_raises_loses_and_a_lack_of_memory_ends_the_run(tmp_path: Path):
    arguments = (torch.zeros(4, 8),)
    rest = arguments, False, choice.Choices(tmp_path / "gpu.json"), lambda work: float(work() is not None)
    with pytest.warns(UserWarning, match="made_up cannot run double here, so our kernel runs: no kernel image"):
        assert choice.choose("double", made_up(double=failing), torch.neg, *rest) is torch.neg

    def full(x: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("full")

    with pytest.raises(torch.OutOfMemoryError):
        choice.choose("triple", made_up(triple=full), torch.neg, *rest)
    assert list(json.loads((tmp_path / "gpu.json").read_text())) == ["double made_up unknown inference float32:4x8"]


class Product(torch.autograd.Function):
    """x * x, with a list of what ran."""

    @staticmethod
    def forward(ctx, x, ran):  # type: ignore[no-untyped-def]
        ctx.ran = ran
        ran.append("forward")
        return x * x

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        ctx.ran.append("backward")
        return grad, None


@pytest.mark.parametrize("training", [False, True])
def test_training_times_the_backward_pass_also_where_gradients_are_off(training: bool, tmp_path: Path):
    ran: list[str] = []

    def square(x: Tensor) -> Tensor:
        return Product.apply(x, ran)

    with torch.inference_mode():
        arguments = (torch.zeros(4, 8),)
        choices = choice.Choices(tmp_path / "gpu.json")
        choice.choose("square", made_up(square=square), square, arguments, training, choices, lambda work: len(work()))
    assert ran == (["forward", "backward"] if training else ["forward"]) * 2


def test_shapes_are_told_apart_by_dtype_use_and_kind_of_entries():
    calls = [attention(kind, heads=2, width=4)(dtype) for kind in ("prefix", "chosen") for dtype in (torch.float32,)]
    calls.append(attention("prefix", heads=2, width=4)(torch.bfloat16))
    keys = {choice.shape_key("attention", "made_up", each, training) for each in calls for training in (False, True)}
    assert len(keys) == 6


def test_packed_weights_are_told_apart_by_form_shape_and_number():
    x = torch.zeros(4, 256)
    forms = [(quantize_fp4, 128, 2), (quantize_fp8, 128, 2), (quantize_fp8, 512, 2), (quantize_fp8, 512, 3)]
    keys = set()
    for pack, outputs, experts in forms:
        packed = [pack(torch.zeros(outputs, 256))] * experts
        arguments = x, tuple(weight for weight, _ in packed), tuple(scale for _, scale in packed), [4] + [0] * experts
        keys.add(choice.shape_key("product", "made_up", arguments, True))
    assert len(keys) == 4


def test_a_training_run_has_the_same_kernel_with_and_without_gradients(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Those without a gradient are not used, or references and rollouts would be of other kernels than steps."""
    monkeypatch.setenv(choice.SWITCH, "1")
    monkeypatch.setattr(choice, "_installed", lambda package: True)
    monkeypatch.setattr(choice, "choose", lambda name, theirs, *rest: vars(theirs)[name])
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "made up")
    far = attention("window", heads=64, width=512, documents=DOCUMENTS)(torch.bfloat16)
    experts = leaf(torch.bfloat16, 3, 64), leaf(torch.bfloat16, 1, 64, 64), [3]
    frozen = experts[0], experts[1].detach(), [3]
    logits = leaf(torch.float32, 2, 4, 4), 20, 1e-6
    used = {}
    for training in (False, True):
        for grad in (False, True):
            with torch.set_grad_enabled(grad):
                used[training, grad] = [
                    choice.implementation(name, module, max, arguments, training) is not max
                    for name, module, arguments in (
                        ("sparse_attention", "flash_mla", far),
                        ("expert_linear", "deep_gemm", experts),
                        ("expert_linear", "deep_gemm", frozen),
                        ("sinkhorn", "tile_kernels", logits),
                    )
                ]
    assert used[False, False] == [True] * 4
    assert used[True, False] == used[True, True] == [False, False, True, True]


def test_the_mode_of_training_stays_unless_kernels_are_batch_invariant():
    with training_kernels():
        with batch_invariant_kernels(False):
            assert dispatch._mode.get() == "training"
        with batch_invariant_kernels(True):
            assert dispatch._mode.get() == "batch_invariant"


def test_documents_of_a_row_do_not_see_each_other():
    """The indices of a window end where its document begins."""
    layout = SequenceLayout.from_documents(DOCUMENTS)
    index = flash_mla._window(layout.positions, 0, 6)
    assert index[0, 10].tolist() == [10] + [-1] * 5
    assert index[0, 11, :3].tolist() == [11, 10, -1]
    assert int(index[1, 13].min()) == 8
