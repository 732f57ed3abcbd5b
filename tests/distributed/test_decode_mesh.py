"""What several processes decode and score is what one does: all cases of a mesh within one set of processes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, TypeVar
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist

from seektune.checkpoint.source import FolderSource
from seektune.data.tokenizer import load_tokenizer
from seektune.evaluate.answers_task import AnswersTask
from seektune.evaluate.config import TaskConfig
from seektune.evaluate.drafter_task import drafter_task
from seektune.evaluate.prompts import PromptForm
from seektune.generate.cache_limit import CacheLimit
from seektune.generate.detokenize import generate_all
from seektune.generate.engine import DecodeEngine, Decodes
from seektune.generate.mesh import DecodeMesh
from seektune.generate.processes import DecodeProcesses, decode_dims
from seektune.generate.ranks import MeshRanks
from seektune.generate.request import DraftCounts, Request
from seektune.generate.sampling_params import GREEDY, Sampling
from seektune.generate.session import LoadOptions
from seektune.lora.files import save_adapter
from seektune.lora.initialize import initial_a
from seektune.lora.inject import AdapterShape, adapt
from seektune.lora.state import adapter_state
from seektune.lora.targets import adaptable
from seektune.model.causal_lm import DeepseekV4ForCausalLM
from seektune.model.config import DeepseekV4Config
from seektune.model.kv_cache.cache import FIRST_ROOM, KVCache
from seektune.model.transformer import TransformerPart
from seektune.parallel.config import ParallelConfig
from seektune.parallel.dims import make_dims
from seektune.parallel.mesh import Mesh
from seektune.parallel.parallelize import parallelize
from seektune.parallel.process_group import ProcessSlot
from seektune.planner.hardware import known_gpu
from seektune.run.decoding import decoding_obstacle
from seektune.signals import Interruption
from seektune.workflows.dry_run_decode import placed
from seektune.workflows.plan_serving import ServingOptions, take_plan

from ..conftest import DSPARK, TOY, randomize
from ..generate.drafting import sometimes_right
from ..train.tiny_run import made_batch
from .workers import run_workers

pytestmark = pytest.mark.slow
T = TypeVar("T")
VOCAB = 512
CONFIG = DeepseekV4Config.preset("tiny").replace(**(TOY | {"vocab_size": VOCAB, "moe_intermediate_size": 32}))
READINGS = {
    "plain": ("plain", LoadOptions("fp32")),
    "packed, released numerics": ("released", LoadOptions("fp32", "released", quantized=True)),
    "adapter on packed weights": ("released", LoadOptions("fp32", quantized=True, adapter=Path("adapter"))),
}
"""Folder of the weights, and how they are read."""
DRAFTING = {
    "mtp": CONFIG,
    "dspark": CONFIG.replace(**DSPARK | {"dspark_markov_rank": CONFIG.hidden_size, "num_nextn_predict_layers": 1}),
}
"""Models with a drafter, by the folder of their weights."""
ENDED = {4: 2, 27: 6}
"""Steps at which requests that are drafted for are ended, and their numbers."""
Texts = list[list[tuple[int, float]]]
"""Of each request: tokens and their log-probabilities."""


@dataclass(frozen=True)
class Found:
    """What a model decodes and scores."""

    joining: Texts
    one_long: Texts
    long_ones: Texts
    follow_ups: Texts
    sampled: list[str]
    prompt: list[float]
    """Log-probabilities of a prompt's tokens."""
    scores: list[list[float]]
    answers: str
    """The answers task's outcomes."""


@dataclass(frozen=True)
class Drafted:
    """What a model decodes with its drafter."""

    greedy: Texts
    sampled: list[str]
    counts: DraftCounts
    """Of all drafts of greedy texts."""
    by_request: list[DraftCounts]
    score: dict[str, Any]
    """Of the task `drafter`."""


def prompt(length: int, seed: int) -> list[int]:
    return torch.randint(VOCAB, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def greedy(length: int, new: int, seed: int, **options: Any) -> Request:
    return Request(prompt(length, seed), new, GREEDY, seed=seed, **options)


def decoded(
    model: Decodes,
    first: Sequence[Request],
    later: dict[int, Sequence[Request]],
    ended: dict[int, int],
    drafts: DraftCounts | None = None,
) -> Texts:
    """Requests of `first`, those that join at later steps, and numbers that end after some tokens.

    With `drafts`, which counts them, a drafter proposes tokens, and the numbers of ENDED end at steps.
    """
    engine = DecodeEngine(model, first, speculative=drafts is not None, longest=400, cpu_kernels=False)
    stopped = {} if drafts is None else ENDED
    texts: Texts = [[] for _ in [*first, *(each for some in later.values() for each in some)]]
    step = 0
    while not engine.done or step <= max([*later, *stopped], default=0):
        engine.add(later.get(step, []))
        if step in stopped:
            engine.end(stopped[step])
        for token in engine.step():
            texts[token.request].append((token.id, token.logprob))
            if len(texts[token.request]) == ended.get(token.request):
                engine.end(token.request)
        step += 1
    if drafts is not None:
        drafts.add(engine.drafts)
    return texts


def found(model: Any, folder: Path) -> Found:
    """Every way to use a model."""
    tokenizer = load_tokenizer(VOCAB)
    later = {1: [greedy(140, 6, 3)], 4: [greedy(3, 9, 4), greedy(2, 2, 5)], 9: [greedy(1, 3, 6)], 16: [greedy(9, 2, 7)]}
    joining = decoded(model, [greedy(5, 12, 1), greedy(40, 3, 2)], later, {0: 6, 5: 2})
    one_long = decoded(model, [greedy(150, 4, 8)], {}, {})
    ends_at_once = frozenset(range(VOCAB))
    long_ones = [greedy(150, 3, seed) for seed in (10, 12, 14)]
    short_ones = [greedy(4, 150, seed, stop_ids=ends_at_once) for seed in (11, 13, 15)]
    together = [each for pair in zip(long_ones, short_ones, strict=True) for each in pair]
    sampling = Sampling(temperature=0.8, top_p=0.9)
    sampled = [Request(prompt(4 + i, i), 4, sampling, stops=("e",), seed=i) for i in range(5)]
    texts, _ = generate_all(model, tokenizer, sampled, rows=4, cpu_kernels=False)
    (first, *_) = DecodeEngine(model, [greedy(30, 1, 20, echo=True)], cpu_kernels=False).tokens()
    batch = made_batch(3, rows=5, length=30, taught=20)
    score = model.score(batch).losses_BT.tolist()
    task = AnswersTask.of(
        TaskConfig(name="answers", path=str(folder / "rows.jsonl"), metric="regex", max_new_tokens=4),
        PromptForm("preview"),
        tokenizer,
    )
    answers = task.run(model, tokenizer, 64).outcomes["right"]
    return Found(
        joining,
        one_long,
        decoded(model, together, {}, {}),
        follow_ups(model),
        [text.text for text in texts],
        [token.logprob for token in first.prompt],
        score,
        str(answers),
    )


def drafted(model: Any) -> Drafted:
    """Texts that begin and end at any time, on ranks with one, several and no chunks of a prompt to read."""
    lengths = ((3, 9), (40, 3), (70, 14), (25, 1), (1, 12), (33, 6), (2, 40))
    asked = [greedy(length, new, seed, drafts=DraftCounts()) for seed, (length, new) in enumerate(lengths)]
    counts = DraftCounts()
    with patch("seektune.generate.worker.CHUNK", 24):
        texts = decoded(model, asked[:2], {1: asked[2:4], 6: asked[4:6], 20: asked[6:]}, {}, counts)
    sampling = Sampling(temperature=0.8, top_p=0.9)
    sampled = [Request(prompt(4 + i, i), 6, sampling, seed=i) for i in range(3)]
    written, _ = generate_all(model, load_tokenizer(VOCAB), sampled, rows=4, speculative=True, cpu_kernels=False)
    by_request = [each.drafts for each in asked if each.drafts is not None]
    task = drafter_task(model.config, [prompt(length, length) for length in (5, 9, 2)])
    score = task.run(model, load_tokenizer(VOCAB), 64).to_dict()
    return Drafted(texts, [text.text for text in written], counts, by_request, score)


def follow_ups(model: Decodes) -> Texts:
    """Two conversations of three turns; on a mesh each continues from its rank's prefix cache, on one process not."""
    reuses = isinstance(model, DecodeMesh) and model.ranks.pp_size == 1
    engine = DecodeEngine(model, longest=400, cpu_kernels=False, prefix_bytes=10**8 if reuses else 0)
    talks = [prompt(140, 30), prompt(20, 31)]
    texts: Texts = []
    for turn in range(3):
        numbers = engine.add([Request(talk, 5, GREEDY) for talk in talks])
        found = [(numbers.index(token.request), token) for token in engine.tokens()]
        said = [[token for talk, token in found if talk == i] for i in range(2)]
        cached = [len(talk) - 5 if turn and reuses else 0 for talk in talks]
        assert [tokens[0].cached for tokens in said] == cached, "four tokens were said and one more was asked"
        texts += [[(token.id, token.logprob) for token in tokens] for tokens in said]
        talks = [
            [*talk, *(token.id for token in tokens), *prompt(4, turn)] for talk, tokens in zip(talks, said, strict=True)
        ]
        talks.reverse()
    return texts


def read(folder: Path, name: str) -> tuple[str, LoadOptions]:
    weights, reading = READINGS[name]
    adapter = reading.adapter and folder / reading.adapter
    return str(folder / weights), replace(reading, adapter=adapter)


def found_together(
    folder: Path, names: Sequence[str], ep_size: int | None, pp_size: int, drafts: bool
) -> tuple[dict[str, Found], dict[str, Drafted], dict[str, int]]:
    """In a worker: what rank 0 finds by reading, and if asked for with each drafter, and the bytes held here."""
    world = dist.get_world_size()
    processes = DecodeProcesses(ProcessSlot(world, dist.get_rank(), worker=True), ep_size, pp_size)
    results = {}
    held = {}
    for name in names:
        weights, reading = read(folder, name)
        mesh = reading.read_spread(weights, processes)
        part = mesh.part
        assert isinstance(part, TransformerPart)
        assert (len(part.layers) < CONFIG.num_hidden_layers) == (pp_size > 1)
        experts = {len(x) for block in part.layers for x in block.ffn.experts.parameters() if x.dim() == 3}
        assert experts == {CONFIG.n_routed_experts // (ep_size or world)}
        held[name] = sum(x.nbytes for key, x in part.state_dict().items() if ".lora." not in key)
        if reading.adapter is None and pp_size == 1:
            asked = ServingOptions(reading.quantized, ep_size)
            planned = take_plan(weights, known_gpu("h100-80gb", world), asked, torch.float32)
            assert planned.tightest.weight_bytes == held[name]
        results |= led(mesh, name, lambda mesh=mesh: found(mesh, folder))
    return results, drafted_together(folder, processes) if drafts else {}, held


def drafted_together(folder: Path, processes: DecodeProcesses) -> dict[str, Drafted]:
    """In a worker."""
    results = {}
    for name in DRAFTING:
        mesh = LoadOptions("fp32", quantized=True).read_spread(str(folder / name), processes, drafter=True)
        results |= led(mesh, name, lambda mesh=mesh: drafted(mesh))
    return results


def led(mesh: DecodeMesh, name: str, body: Callable[[], T]) -> dict[str, T]:
    """The result of rank 0 by name; nothing on others."""
    if mesh.ranks.rank == 0:
        return {name: mesh.lead(body)}
    mesh.follow()
    return {}


def found_in_training(folder: Path, parallel: ParallelConfig) -> dict[str, Any]:
    """In a worker: the model of a training run, and one whose last rank is damaged."""
    assert decoding_obstacle(make_dims(parallel, 2, CONFIG), parallel) is None
    mesh = Mesh.of(make_dims(parallel, 2, CONFIG), torch.device("cpu"))
    model = parallelize(CONFIG, mesh, parallel, torch.float32)
    model.load_pretrained(folder / "plain")
    model.score(made_batch(0))
    assert mesh.axes is not None
    decoding = DecodeMesh(model.decodable(), MeshRanks(mesh.axes.control, Interruption(worker=True), parallel.pp_size))
    results: dict[str, Any] = led(decoding, "plain", lambda: found(decoding, folder))
    model.score(made_batch(0))
    if mesh.rank == 1:
        assert isinstance(decoding.part, TransformerPart)
        decoding.part.head.weight.data.fill_(torch.nan)
    try:
        return results | led(decoding, "damaged", lambda: decoded(decoding, [greedy(3, 4, 0), greedy(3, 4, 1)], {}, {}))
    except ArithmeticError as error:
        return results | {"damaged": str(error)}


def few_texts(model: Decodes) -> Texts:
    """Four texts, of which two join later."""
    return decoded(model, [greedy(5, 5, 1), greedy(40, 3, 2)], {1: [greedy(9, 3, 3)], 3: [greedy(3, 2, 4)]}, {})


def few_together(folder: Path) -> Texts:
    """In a worker of eight: two stages, whose experts are spread over four processes."""
    processes = DecodeProcesses(ProcessSlot(8, dist.get_rank(), worker=True), 4, 2)
    weights, reading = read(folder, "adapter on packed weights")
    mesh = reading.read_spread(weights, processes)
    return led(mesh, "texts", lambda: few_texts(mesh)).get("texts", [])


def grown_in_a_pipeline(folder: Path) -> list[Any]:
    """In a worker: how two sequences end of which one outgrows the first room, which no cache of a stage does."""
    processes = DecodeProcesses(ProcessSlot(2, dist.get_rank(), worker=True), 1, 2)
    mesh = LoadOptions("fp32").read_spread(str(folder / "plain"), processes)
    reserve = KVCache.reserve
    poor = -1

    def refuse(cache: KVCache, tokens: int) -> None:
        if dist.get_rank() == poor and tokens > FIRST_ROOM:
            raise RuntimeError("out of memory")
        reserve(cache, tokens)

    def ends() -> Any:
        engine = DecodeEngine(mesh, longest=400, cpu_kernels=False, memory=CacheLimit())
        engine.add([greedy(FIRST_ROOM - 3, 9, 1), greedy(5, 9, 2)])
        try:
            tokens = list(engine.tokens())
        except RuntimeError as error:
            return str(error)
        return [[token.end for token in tokens if token.request == number][-1] for number in (0, 1)]

    results: list[Any] = []
    with patch.object(KVCache, "reserve", refuse):
        for rank in (1, 0, -1):
            poor = rank
            results += led(mesh, "ends", ends).values()
    return results


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights as trained and as released, an adapter on everything, and rows with answers."""
    made = tmp_path_factory.mktemp("weights")
    model = DeepseekV4ForCausalLM(CONFIG)
    randomize(model)
    model.save_pretrained(made / "plain", "fp32")
    model.save_pretrained(made / "released", "released")
    names = [name for name in adaptable(model) if not name.startswith("mtp.")]
    adapt(model, names, AdapterShape(rank=2, alpha=4.0), "loaded")
    with torch.no_grad():
        for name, x in adapter_state(model).items():
            x.copy_(initial_a(name, x.shape, 1))
    save_adapter(model, made / "adapter", adapter="loaded")
    for name, config in DRAFTING.items():
        drafting = DeepseekV4ForCausalLM(config, drafter=True)
        randomize(drafting)
        sometimes_right(drafting).save_pretrained(made / name, "released")
    rows = [
        f'{{"prompt": "The man {word}", "answer": "{letter}"}}' for word in ("is", "was", "sat") for letter in "aeo."
    ]
    (made / "rows.jsonl").write_text("\n".join(rows), encoding="utf-8")
    return made


@cache
def found_alone(folder: Path, name: str) -> Found:
    """What one process finds."""
    weights, reading = read(folder, name)
    return found(reading.read(weights), folder)


@cache
def drafted_alone(folder: Path, name: str) -> Drafted:
    """What one process decodes with its drafter."""
    return drafted(LoadOptions("fp32", quantized=True).read(str(folder / name), drafter=True))


def check_same_drafts(here: Drafted, there: Drafted) -> None:
    """A request that is ended early has as many tokens as the chunks of other prompts leave it time for."""
    for number, (one, many) in enumerate(zip(here.greedy, there.greedy, strict=True)):
        common = min(len(one), len(many)) if number in ENDED.values() else max(len(one), len(many))
        assert [token for token, _ in many[:common]] == [token for token, _ in one[:common]]
    kept = [number for number in range(len(here.by_request)) if number not in ENDED.values()]
    assert [there.by_request[number] for number in kept] == [here.by_request[number] for number in kept]
    for each in (here, there):
        assert each.counts.made == sum(counts.made for counts in each.by_request)
    assert (there.sampled, there.score) == (here.sampled, here.score)
    assert 0 < here.counts.accepted < here.counts.made


def check_same(here: Found, there: Found) -> None:
    for one, many in (
        (here.joining, there.joining),
        (here.one_long, there.one_long),
        (here.long_ones, there.long_ones),
        (here.follow_ups, there.follow_ups),
    ):
        assert [[token for token, _ in text] for text in many] == [[token for token, _ in text] for text in one]
        logprobs = [logprob for text in many for _, logprob in text]
        assert logprobs == pytest.approx([logprob for text in one for _, logprob in text], abs=1e-5)
    assert there.sampled == here.sampled
    assert there.prompt == pytest.approx(here.prompt, abs=1e-5)
    torch.testing.assert_close(torch.tensor(there.scores), torch.tensor(here.scores), rtol=0, atol=1e-5)
    assert there.answers == here.answers
    assert {"0", "1"} <= set(here.answers)


@pytest.mark.parametrize(
    ("world", "ep_size", "pp_size", "names", "drafts"),
    [
        (2, None, 1, [*READINGS], True),
        (4, None, 1, ["adapter on packed weights"], False),
        (4, 2, 1, ["plain"], True),
        (2, 1, 1, ["plain"], False),
        (2, 1, 2, [*READINGS], False),
        (4, 2, 2, ["adapter on packed weights"], False),
    ],
)
def test_a_mesh_decodes_and_scores_as_one_process(
    folder: Path, world: int, ep_size: int | None, pp_size: int, names: list[str], drafts: bool
):
    together = run_workers(world, found_together, folder, names, ep_size, pp_size, drafts)
    assert [results for *results, _ in together[1:]] == [[{}, {}]] * (world - 1)
    found, drafted, _ = together[0]
    for name in names:
        check_same(found_alone(folder, name), found[name])
        weights, reading = read(folder, name)
        kinds = FolderSource(Path(weights)).kind if reading.quantized else None
        dims = decode_dims(world, ep_size, pp_size, CONFIG)
        planned = [placed(CONFIG, kinds, reading, dims, rank, allowed=0) for rank in range(world)]
        assert [held[name] for *_, held in together] == [each.parts.total() for each in planned]
    assert list(drafted) == [*DRAFTING] * drafts
    for name in drafted:
        check_same_drafts(drafted_alone(folder, name), drafted[name])


def test_no_two_readings_decode_alike(folder: Path):
    assert len({repr(found_alone(folder, name).joining) for name in READINGS}) == len(READINGS)


@pytest.mark.parametrize("layout", [{"dp_replicate": 2, "ep_size": 2}, {"pp_size": 2}])
def test_the_mesh_of_a_training_run_decodes_and_an_error_of_any_rank_is_raised(folder: Path, layout: dict[str, int]):
    together = run_workers(2, found_in_training, folder, ParallelConfig(dp_shard=1, **layout))
    check_same(found_alone(folder, "plain"), together[0]["plain"])
    assert together[0]["damaged"] == "the model's logits are NaN; its weights may be damaged"
    assert together[1] == {}


def test_a_stage_whose_caches_cannot_grow_ends_a_sequence_or_reports_it(folder: Path):
    """The last stage tells the others which sequence ended; one before it cannot. Then another engine begins."""
    expected = [["memory", "length"], "out of memory", ["length", "length"]]
    assert run_workers(2, grown_in_a_pipeline, folder) == [expected, []]


def test_eight_processes_decode_as_one(folder: Path):
    weights, reading = read(folder, "adapter on packed weights")
    alone = few_texts(reading.read(weights))
    first, *others = run_workers(8, few_together, folder)
    assert others == [[]] * 7
    assert [[token for token, _ in text] for text in first] == [[token for token, _ in text] for text in alone]
    logprobs = [logprob for text in first for _, logprob in text]
    assert logprobs == pytest.approx([logprob for text in alone for _, logprob in text], abs=1e-5)
