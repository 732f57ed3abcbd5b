"""The Recipe: everything that a user may say about a training run, as one typed and checked object."""

from pathlib import Path
from typing import Annotated, Literal, Self, TypeAlias

from pydantic import AfterValidator, BeforeValidator, Field, PositiveInt, model_validator

from seektune.data.config import BatchConfig
from seektune.data.datasets.registry import DataSection, default_data
from seektune.evaluate.config import EvaluateConfig
from seektune.lora.config import LoraConfig
from seektune.model.choices import DtypeName, NumericsName
from seektune.model.config import PRESETS, DeepseekV4Config
from seektune.parallel.config import ParallelConfig
from seektune.section import Section
from seektune.train.config import (
    CheckpointConfig,
    GuardConfig,
    LoggingConfig,
    LossConfig,
    OptimizerConfig,
    ScheduleConfig,
)


def _known_preset(name: str) -> str:
    if name not in PRESETS:
        raise ValueError(f"unknown preset {name!r}; the presets are {', '.join(PRESETS)}")
    return name


def _at_home(path: str) -> str:
    return str(Path(path).expanduser()) if path.startswith("~") else path


def _written_out(parallel: object) -> object:
    """`parallel: auto` as the section that it is short for."""
    return {"layout": "auto"} if parallel == "auto" else parallel


Place = Annotated[str, AfterValidator(_at_home)]
ParallelOrAuto: TypeAlias = ParallelConfig | Literal["auto"]
PresetName = Annotated[str, AfterValidator(_known_preset), Field(json_schema_extra={"enum": list(PRESETS)})]


class ModelConfig(Section):
    """Which DeepSeek-V4 is trained and from which weights; its shape comes from exactly one source."""

    preset: PresetName | None = None
    """A published architecture by name; `tiny` has every mechanism at the size of a laptop."""
    config: Place | None = None
    """Path of a config.json that describes the architecture; the weights start random."""
    weights: Place | None = None
    """Checkpoint folder or Hub id; its config.json decides, and a preset beside it must agree. null = random."""
    dtype: DtypeName = "bf16"
    """Precision of the weights while training (what must be fp32 stays fp32)."""
    quantized: bool = False
    """Keep FP4 and FP8 weights in those bytes, frozen, dequantized only while in use; needs `lora`."""
    offload: Literal["none", "stream"] = "none"
    """`stream` leaves quantized weights in their files, to come in a block ahead of use: for models above memory."""
    numerics: NumericsName = "plain"
    """`released` also imitates the FP8 and FP4 rounding that serving applies to keys and the indexer."""

    @model_validator(mode="after")
    def _has_one_source(self) -> Self:
        if self.preset is None and self.config is None and self.weights is None:
            raise ValueError("model needs an architecture: give model.preset, model.config or model.weights")
        if self.config is not None and (self.preset is not None or self.weights is not None):
            other = "model.preset" if self.preset is not None else "model.weights"
            raise ValueError(f"model.config and {other} both describe the architecture; set one of them to null")
        return self

    def architecture(self) -> DeepseekV4Config | None:
        """The shape of the model where it is known without the network: weights on the Hub are not asked.

        Raises:
            ValueError: the config.json that is named is missing or wrong, or the preset contradicts the weights.
        """
        if self.config is not None:
            return DeepseekV4Config.from_pretrained(self.config)
        if self.weights is not None and Path(self.weights).is_dir():
            found = DeepseekV4Config.from_pretrained(self.weights)
            self.agree(found)
            return found
        return None if self.preset is None else DeepseekV4Config.preset(self.preset)

    def agree(self, found: DeepseekV4Config) -> None:
        """Check the weights' own config against the preset that stands beside them.

        Raises:
            ValueError: another width, depth or vocabulary.
        """
        if self.preset is None:
            return
        said = DeepseekV4Config.preset(self.preset)
        for key, expected, actual in [
            ("hidden_size", said.hidden_size, found.hidden_size),
            ("num_hidden_layers", said.num_hidden_layers, found.num_hidden_layers),
            ("vocab_size", said.vocab_size, found.vocab_size),
        ]:
            if expected != actual:
                raise ValueError(
                    f"model.weights {self.weights} has {key} {actual}, but model.preset {self.preset} has {expected}; "
                    "set model.preset to null to follow the weights"
                )


class Recipe(Section):
    """A training run: sections by subject, each written with the room that uses it."""

    model: ModelConfig
    """Which DeepSeek-V4 is trained and from which weights."""
    data: DataSection = default_data()
    """Where the examples come from."""
    batch: BatchConfig
    """How many tokens meet in one optimizer step."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """How weights move."""
    schedule: ScheduleConfig = ScheduleConfig()
    """How the learning rate changes over the run."""
    loss: LossConfig = LossConfig()
    """What is minimised beside the next-token loss."""
    lora: LoraConfig = LoraConfig()
    """Train low-rank adapters instead of the weights themselves."""
    parallel: Annotated[ParallelConfig, BeforeValidator(_written_out, json_schema_input_type=ParallelOrAuto)] = (
        ParallelConfig()
    )
    """How many processes share the work; `auto` lets the planner choose at launch."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    """When weights are written on the way; they always are at the end."""
    guard: GuardConfig = GuardConfig()
    """What happens when a loss spikes or is not finite, or a step hangs."""
    evaluate: EvaluateConfig = EvaluateConfig()
    """When exams are held and how large they are."""
    logging: LoggingConfig = LoggingConfig()
    """What is printed and recorded."""
    steps: PositiveInt
    """Optimizer steps."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Decides the order of the rows and random weights; the same seed gives the same run."""
    run_dir: str | None = None
    """Folder of this run; null = runs/NAME-DATE-TIME, NAME being the recipe's file name."""
    resume: str = "auto"
    """`auto` goes on where `run_dir` stopped, `no` never does, a path starts from that checkpoint or run folder."""

    @model_validator(mode="after")
    def _warm_up_ends(self) -> Self:
        warmup = self.schedule.warmup_steps
        if warmup >= self.steps:
            raise ValueError(f"schedule.warmup_steps ({warmup}) must be less than steps ({self.steps})")
        return self

    def check_world(self, processes: int) -> None:
        """Check that so many processes can train this together.

        Raises:
            ValueError: streamed weights have one process.
        """
        if processes > 1 and self.model.offload == "stream":
            raise ValueError(
                f"model.offload stream is for one process, not for {processes}, which divide the weights among them; "
                "set it to none, or leave --nproc-per-node and --nnodes at 1"
            )

    @model_validator(mode="after")
    def _frozen_stays_frozen(self) -> Self:
        if self.model.quantized and not self.lora.targets:
            raise ValueError(
                "model.quantized weights cannot be trained; name adapters in lora.targets, or set it to false"
            )
        if self.model.offload == "stream" and (not self.model.quantized or self.model.weights is None):
            raise ValueError("model.offload stream needs model.weights to stream from, and model.quantized")
        if self.lora.targets and self.loss.bias_update_speed:
            raise ValueError("loss.bias_update_speed must be 0 with lora.targets: the gates stay as released")
        return self
