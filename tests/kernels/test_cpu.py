"""The twins in C++ equal the plain ones; where they cannot be made, everything runs without them."""

import logging
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

from seektune import kernels
from seektune.kernels import Kernel, cpu, rms_norm, route
from seektune.kernels.cpu import library
from seektune.kernels.reference import sort_pairs

from .inputs import CASES, Case
from .test_twins import BOUNDS, odd_start, reversed_strides

NATIVE = {name: kernel for name, kernel in vars(kernels).items() if isinstance(kernel, Kernel) and kernel.cpu}
PAIRS = [
    pytest.param(name, case, id=f"{name}-{label}")
    for name, cases in CASES.items()
    for label, case in cases.items()
    if name in NATIVE
]


@pytest.fixture(autouse=True, scope="module")
def compiler():
    if library.library() is None:
        pytest.skip("no C++ compiler here")


def both(name: str, arguments: tuple) -> tuple[list[Tensor], list[Tensor]]:
    """What the native and the plain twin give."""
    detached = [x.detach() if isinstance(x, Tensor) else x for x in arguments]
    found = [NATIVE[name].cpu(*detached), NATIVE[name].reference(*detached)]
    assert found[0] is not None, "it did not run"
    one, other = ([*x] if isinstance(x, tuple) else [x] for x in found)
    return one, other


@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
@pytest.mark.parametrize(("name", "case"), PAIRS)
def test_the_native_twin_equals_the_plain_one(name: str, case: Case, dtype: torch.dtype):
    for found, expected in zip(*both(name, case(dtype)), strict=True):
        assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
        scale = max(float(expected.abs().max()), 1e-3) if expected.numel() else 1.0
        torch.testing.assert_close(found.double() / scale, expected.double() / scale, rtol=0, atol=BOUNDS[dtype])


@pytest.mark.parametrize("layout", [reversed_strides, odd_start])
@pytest.mark.parametrize("name", sorted({*NATIVE} & {*CASES}))
def test_tensors_of_any_layout_are_read_right_or_left_alone(name: str, layout):
    case = next(iter(CASES[name].values()))(torch.float64)
    arguments = [
        layout(x.detach()) if isinstance(x, Tensor) and x.is_floating_point() else x
        for x in (x.detach() if isinstance(x, Tensor) else x for x in case)
    ]
    with torch.no_grad():
        for found, expected in zip(
            *(
                y if isinstance(y, tuple) else (y,)
                for y in (NATIVE[name](*arguments), NATIVE[name].reference(*arguments))
            ),
            strict=True,
        ):
            torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_pairs_are_sorted_as_by_the_plain_twin():
    experts, weights = torch.tensor([[4, 0, 2], [0, 4, 1], [4, 2, 0]]), torch.rand(3, 3)
    for found, expected in zip(cpu.sort_pairs(experts, weights, 6), sort_pairs(experts, weights, 6), strict=True):
        assert torch.equal(found, expected)


@pytest.mark.parametrize("shift", [0.0, -200.0, 40.0])
def test_tokens_are_routed_as_by_the_plain_twin(shift: float):
    logits, bias = torch.randn(9, 7).double().T.contiguous().T * 3 + shift, torch.randn(7).double()
    for found, expected in zip(cpu.route(logits, bias, 3, 1.5), route.reference(logits, bias, 3, 1.5), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_bf16_is_rounded_to_the_nearest_as_torch_does():
    x = torch.randn(4, 1000).bfloat16()
    identity = torch.eye(1000).bfloat16()
    assert torch.equal(cpu.linear(x * 3, identity), x * 3)
    halves = torch.tensor([[1.0, 2**-8], [1.0, 3 * 2**-8], [torch.nan, 1.0]]).bfloat16()
    found, expected = (f(halves, torch.ones(1, 2).bfloat16()) for f in (cpu.linear, torch.nn.functional.linear))
    assert torch.equal(found[:2], expected[:2])
    assert found[2].isnan()


def test_they_run_for_few_tokens_without_gradients_only(monkeypatch):
    calls = []
    monkeypatch.setattr(cpu, "function", lambda name, dtype: calls.append(name))
    x, weight = torch.randn(3, 8), torch.ones(8)
    rms_norm(x, weight, 1e-6)
    assert calls == []
    with torch.no_grad():
        rms_norm(torch.randn(2**14, 8), weight, 1e-6)
        assert calls == []
        found = rms_norm(x, weight, 1e-6)
    assert calls == ["rms_norm"]
    torch.testing.assert_close(found, rms_norm.reference(x, weight, 1e-6))


@torch.no_grad()
@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")
@pytest.mark.parametrize("way", ["dual", "func"])
@pytest.mark.parametrize("name", sorted({*NATIVE} & {*CASES} - {"index_topk"}))
def test_derivatives_forwards_are_taken_without_gradients(name: str, way: str):
    first, *rest = (x.detach() if isinstance(x, Tensor) else x for x in next(iter(CASES[name].values()))(torch.float64))
    along, step = torch.randn_like(first), 1e-6

    def run(x: Tensor) -> Tensor:
        found = NATIVE[name](x, *rest)
        return found[0] if isinstance(found, tuple) else found

    if way == "func":
        value, slope = torch.func.jvp(run, (first,), (along,))
    else:
        with forward_ad.dual_level():
            value, slope = forward_ad.unpack_dual(run(forward_ad.make_dual(first, along)))
    near = [run(first + sign * step * along) for sign in (1, -1)]
    torch.testing.assert_close(value, run(first), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(slope, (near[0] - near[1]) / (2 * step), rtol=1e-5, atol=1e-5)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch) -> Path:
    """Where libraries are kept."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "seektune"


@pytest.fixture
def compiled(monkeypatch) -> list[str]:
    """The compilers that ran; each gives the library that there is already."""
    whole, found = Path(library.library()._name).read_bytes()[:-32], []

    def compile_to(file: Path, compiler: str, sources: list[Path]) -> None:
        found.append(compiler)
        file.write_bytes(whole)

    monkeypatch.setattr(library, "compile_to", compile_to)
    return found


def test_the_library_is_made_once(folder: Path, compiled: list[str]):
    first, again = (library.made(folder) for _ in range(2))
    assert first == again
    assert len(compiled) == 1
    (folder / "lock").unlink()
    (folder / "lock").mkdir()  # what is there is used, lock or not
    assert library.made(folder) == first
    assert folder.stat().st_mode & 0o777 == 0o700


def test_a_folder_that_cannot_be_written_is_done_without(tmp_path: Path, compiled: list[str]):
    (tmp_path / "file").touch()
    assert library.made(tmp_path / "file" / "cache").is_file()
    assert compiled


@pytest.mark.parametrize("bytes_left", [0, 64, -40, -1])
def test_a_library_that_was_cut_off_is_made_again(folder: Path, compiled: list[str], bytes_left: int):
    file = library.made(folder)
    file.write_bytes(file.read_bytes()[:bytes_left])
    assert library.library.__wrapped__() is not None
    assert len(compiled) == 2
    assert library.is_whole(file)


def test_a_library_that_cannot_be_loaded_is_made_again(folder: Path, compiled: list[str]):
    file = library.made(folder)
    part = folder / "part"
    part.write_bytes(b"of another system")
    library.seal(part, file)
    assert library.library.__wrapped__() is not None
    assert len(compiled) == 2


def test_what_is_made_already_needs_no_compiler(folder: Path, compiled: list[str], monkeypatch):
    library.made(folder)
    monkeypatch.setattr(library.shutil, "which", lambda name: None)
    assert library.library.__wrapped__() is not None


@pytest.mark.parametrize(("what", "mode"), [("folder", 0o770), ("folder", 0o707), ("file", 0o646), ("file", 0o664)])
def test_what_others_can_write_is_not_run(folder: Path, compiled: list[str], caplog, what: str, mode: int):
    path = {"file": library.made(folder), "folder": folder}[what]
    path.chmod(mode)
    assert library.library.__wrapped__() is None
    assert f"others own {path} or can write it" in caplog.text
    path.chmod(mode & ~0o022)
    assert library.library.__wrapped__() is not None


def test_what_others_own_is_not_run(folder: Path, compiled: list[str], caplog, monkeypatch):
    library.made(folder)
    owner = folder.stat().st_uid
    monkeypatch.setattr(library.os, "geteuid", lambda: owner + 1)
    monkeypatch.setattr(library, "SYSTEM", -1)
    assert library.library.__wrapped__() is None
    assert f"others own {folder}" in caplog.text


@pytest.mark.parametrize(
    ("which", "said"),
    [
        (None, "no C++ compiler (g++) was found"),
        ("/bin/false", "/bin/false ends with 1"),
        ("/nowhere/g++", "No such file"),
    ],
)
def test_without_a_compiler_one_line_says_so(which, said, folder, monkeypatch, caplog):
    monkeypatch.setattr(library.shutil, "which", lambda name: which)
    with caplog.at_level(logging.INFO, "seektune"):
        assert library.library.__wrapped__() is None
    (line,) = caplog.messages
    assert said in line
    assert "\n" not in line
