"""The C++ kernels equal their definitions, and run in `cpu_decode_kernels` only; without a compiler all runs too."""

import logging
from pathlib import Path

import pytest
import torch
from torch import Tensor

from seektune import kernels
from seektune.kernels import Kernel, cpu, cpu_decode_kernels, dispatch, rms_norm, route
from seektune.kernels.cpu import library
from seektune.kernels.reference import sort_pairs

from .inputs import CASES, Case
from .test_twins import BOUNDS, odd_start, reversed_strides

CPU_KERNELS = {name: kernel for name, kernel in vars(kernels).items() if isinstance(kernel, Kernel) and kernel.cpu}
PAIRS = [
    pytest.param(name, case, id=f"{name}-{label}")
    for name, cases in CASES.items()
    for label, case in cases.items()
    if name in CPU_KERNELS
]
BOUND = BOUNDS[torch.float32]


@pytest.fixture(autouse=True, scope="module")
def compiler():
    if library.library() is None:
        pytest.skip("no C++ compiler here")


def detached(arguments: tuple) -> list:
    return [x.detach() if isinstance(x, Tensor) else x for x in arguments]


def as_list(result: Tensor | tuple) -> list[Tensor]:
    return [*result] if isinstance(result, tuple) else [result]


def assert_equal(result: Tensor | tuple, expected: Tensor | tuple) -> None:
    for x, y in zip(as_list(result), as_list(expected), strict=True):
        assert (x.dtype, x.shape) == (y.dtype, y.shape)
        scale = max(float(y.abs().max()), 1e-3) if y.numel() else 1.0
        torch.testing.assert_close(x.double() / scale, y.double() / scale, rtol=0, atol=BOUND)


@pytest.mark.parametrize(("name", "case"), PAIRS)
def test_cpu_kernel_equals_its_definition(name: str, case: Case):
    arguments = detached(case(torch.float32))
    result = CPU_KERNELS[name].cpu(*arguments)
    assert result is not None, "it did not run"
    assert_equal(result, CPU_KERNELS[name].reference(*arguments))


@pytest.mark.parametrize("layout", [reversed_strides, odd_start])
@pytest.mark.parametrize("name", sorted({*CPU_KERNELS} & {*CASES}))
def test_tensors_of_any_layout_are_read_correctly(name: str, layout):
    arguments = [
        layout(x) if isinstance(x, Tensor) and x.is_floating_point() else x
        for x in detached(next(iter(CASES[name].values()))(torch.float32))
    ]
    with cpu_decode_kernels():
        assert_equal(CPU_KERNELS[name](*arguments), CPU_KERNELS[name].reference(*arguments))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("name", "case"), PAIRS)
def test_other_dtypes_are_left_to_the_eager_kernels(name: str, case: Case, dtype: torch.dtype):
    assert CPU_KERNELS[name].cpu(*detached(case(dtype))) is None


def test_pairs_are_sorted_as_by_the_definition():
    experts, weights = torch.tensor([[4, 0, 2], [0, 4, 1], [4, 2, 0]]), torch.rand(3, 3)
    for found, expected in zip(cpu.sort_pairs(experts, weights, 6), sort_pairs(experts, weights, 6), strict=True):
        assert torch.equal(found, expected)


@pytest.mark.parametrize("shift", [0.0, -200.0, 40.0])
def test_tokens_are_routed_as_by_the_definition(shift: float):
    logits, bias = torch.randn(9, 7).T.contiguous().T * 3 + shift, torch.randn(7)
    for found, expected in zip(cpu.route(logits, bias, 3, 1.5), route.reference(logits, bias, 3, 1.5), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_cpu_kernels_run_in_their_context_only(monkeypatch):
    calls = []
    monkeypatch.setattr(cpu, "call", lambda name, *rest: calls.append(name))
    x, weight = torch.randn(3, 8), torch.ones(8)
    for context in (torch.enable_grad, torch.no_grad, torch.inference_mode):
        with context():
            rms_norm(x, weight, 1e-6)
    assert calls == []
    with cpu_decode_kernels():
        rms_norm(x, weight, 1e-6)
    assert calls == ["rms_norm"]
    rms_norm(x, weight, 1e-6)
    assert calls == ["rms_norm"]


def test_without_a_compiler_the_context_changes_nothing(monkeypatch):
    monkeypatch.setattr(dispatch, "library", lambda: None)
    x, weight = torch.randn(3, 8), torch.ones(8)
    with cpu_decode_kernels():
        assert torch.equal(rms_norm(x, weight, 1e-6), rms_norm.eager(x, weight, 1e-6))


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


def test_a_link_is_not_run(folder: Path, compiled: list[str], caplog):
    file = library.made(folder)
    file.symlink_to(file.rename(folder / "elsewhere.so"))
    assert library.library.__wrapped__() is None
    assert f"others own {file} or can write it" in caplog.text


def test_what_others_can_replace_is_not_run(folder: Path, compiled: list[str], caplog):
    library.made(folder)
    folder.parent.chmod(0o777)
    assert library.library.__wrapped__() is None
    assert f"others can rename what is in {folder.parent}" in caplog.text
    folder.parent.chmod(0o1777)  # as /tmp: only owners rename
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
