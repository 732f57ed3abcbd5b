"""The Recipe: all settings of a training run as one typed and checked object."""

import os
from typing import Annotated, Literal, Self, TypeAlias

from pydantic import AfterValidator, BeforeValidator, Field, PositiveInt, model_validator

from seektune.data.config import BatchConfig
from seektune.data.datasets.dataset import DataConfig
from seektune.data.datasets.registry import DataSection, default_data
from seektune.data.datasets.rows import RowsConfig
from seektune.evaluate.config import EvaluateConfig
from seektune.lora.config import LoraConfig
from seektune.model.choices import DtypeName, NumericsName
from seektune.model.config import DeepseekV4Config
from seektune.model.variants import PRESETS
from seektune.parallel.config import ParallelConfig
from seektune.section import PathString, Section
from seektune.train.config import (
    CheckpointConfig,
    GuardConfig,
    LoggingConfig,
    LossConfig,
    ScheduleConfig,
    TrainConfig,
)
from seektune.train.objectives import CrossEntropyConfig, ObjectiveSection
from seektune.train.optim.config import AdamWConfig, OptimizerSection


def _known_preset(name: str) -> str:
    DeepseekV4Config.preset(name)
    return name


def _expand_auto(parallel: object) -> object:
    """Expand `parallel: auto` to the section it stands for."""
    return {"layout": "auto"} if parallel == "auto" else parallel


ParallelOrAuto: TypeAlias = ParallelConfig | Literal["auto"]
PresetName = Annotated[str, AfterValidator(_known_preset), Field(json_schema_extra={"enum": list(PRESETS)})]


class ModelConfig(Section):
    """The DeepSeek-V4 architecture to train and its initial weights; exactly one source defines the architecture."""

    preset: PresetName | None = None
    """A published architecture by name; `tiny` has every mechanism at laptop size."""
    config: PathString | None = None
    """Path of a config.json that defines the architecture; the weights are initialized randomly."""
    weights: PathString | None = None
    """Checkpoint folder or Hub id; its config.json defines the architecture, and a preset must agree. null = random."""
    dtype: DtypeName = "bf16"
    """Dtype of the weights during training (weights that must be fp32 stay fp32)."""
    quantized: bool = False
    """Keep FP4 and FP8 weights quantized and frozen, dequantized only while in use; needs `lora` or `train.drafter`."""
    offload: Literal["none", "stream"] = "none"
    """`stream` keeps quantized weights on disk and reads them one block ahead: for models larger than memory."""
    numerics: NumericsName = "plain"
    """`released` also applies the FP8 and FP4 rounding of keys and the indexer that serving uses; `serving` also rounds
    the inputs of products with `quantized` weights to FP8 as serving does, on FP8 tensor cores where a GPU has them."""
    batch_invariant: bool = False
    """Compute each token alike whatever else is in its batch: decoding and training then give the same bits, but
    for rare roundings. Slower."""

    @model_validator(mode="after")
    def _has_one_architecture(self) -> Self:
        if self.preset is None and self.config is None and self.weights is None:
            raise ValueError("model needs an architecture: set model.preset, model.config or model.weights")
        if self.config is not None and (self.preset is not None or self.weights is not None):
            other = "model.preset" if self.preset is not None else "model.weights"
            raise ValueError(f"model.config and {other} both define the architecture; set one of them to null")
        return self

    def architecture(self) -> DeepseekV4Config | None:
        """The architecture if it is known without the network; None for weights on the Hub without a preset.

        Raises:
            ValueError: the config.json is missing or invalid, or the preset contradicts the weights.
        """
        if self.config is not None:
            return DeepseekV4Config.from_pretrained(self.config)
        if self.weights is not None and os.path.isdir(self.weights):
            config = DeepseekV4Config.from_pretrained(self.weights)
            self.agree(config)
            return config
        return None if self.preset is None else DeepseekV4Config.preset(self.preset)

    def agree(self, config: DeepseekV4Config) -> None:
        """Check the weights' config against the preset, if one is set.

        Raises:
            ValueError: width, depth, vocabulary or the kind of drafter differ.
        """
        if self.preset is None:
            return
        preset = DeepseekV4Config.preset(self.preset)
        for key, expected, actual in [
            ("hidden_size", preset.hidden_size, config.hidden_size),
            ("num_hidden_layers", preset.num_hidden_layers, config.num_hidden_layers),
            ("vocab_size", preset.vocab_size, config.vocab_size),
            ("mtp_layers", preset.mtp_layers, config.mtp_layers),
            ("dspark_stages", preset.dspark_stages, config.dspark_stages),
        ]:
            if expected != actual:
                raise ValueError(
                    f"model.weights {self.weights} has {key} {actual}, but model.preset {self.preset} has {expected}; "
                    "set model.preset to null to follow the weights"
                )


class Recipe(Section):
    """A training run."""

    model: ModelConfig
    """The architecture and its initial weights."""
    data: DataSection = default_data()
    """One dataset, or a list of them with weights."""
    batch: BatchConfig
    """Number of tokens per optimizer step."""
    objective: ObjectiveSection = CrossEntropyConfig()
    """What the model is trained for."""
    optimizer: OptimizerSection = AdamWConfig()
    """Optimizer and its settings."""
    schedule: ScheduleConfig = ScheduleConfig()
    """Learning rate schedule."""
    loss: LossConfig = LossConfig()
    """Loss terms in addition to the next-token loss."""
    train: TrainConfig = TrainConfig()
    """How weights are trained, or what else is."""
    lora: LoraConfig = LoraConfig()
    """Train low-rank adapters instead of the weights themselves."""
    parallel: Annotated[ParallelConfig, BeforeValidator(_expand_auto, json_schema_input_type=ParallelOrAuto)] = (
        ParallelConfig()
    )
    """Parallelism; `auto` lets the planner choose a layout at launch."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    """When checkpoints are saved; one is always saved at the end."""
    guard: GuardConfig = GuardConfig()
    """What to do when a loss spikes or is not finite, or a step hangs."""
    evaluate: EvaluateConfig = EvaluateConfig()
    """When evals run and how large they are."""
    logging: LoggingConfig = LoggingConfig()
    """What is printed and recorded."""
    steps: PositiveInt
    """Number of optimizer steps."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Seed of the row order and random weights; the same seed gives the same run."""
    run_dir: PathString | None = None
    """Folder of this run; null = runs/NAME-DATE-TIME, with the recipe's file name as NAME."""
    resume: PathString = "auto"
    """`auto` resumes the run in `run_dir`, `no` refuses to, a path starts from that checkpoint or run folder."""

    @model_validator(mode="after")
    def _warmup_is_shorter(self) -> Self:
        warmup = self.schedule.warmup_steps
        if warmup >= self.steps:
            raise ValueError(f"schedule.warmup_steps ({warmup}) must be less than steps ({self.steps})")
        if self.schedule.name == "wsd" and self.schedule.decay_share * (self.steps - warmup) <= 1:
            raise ValueError(f"schedule.decay_share leaves wsd no step to fall in of {self.steps}; raise it or steps")
        return self

    @property
    def switches_adapters_off(self) -> bool:
        """Whether the reference model of the objective is this one without its adapters."""
        fresh = bool(self.lora.targets) and self.lora.adapter is None
        choice = self.objective.reference_choice
        return choice == "adapters_off" or (choice == "auto" and fresh)

    @property
    def has_frozen_models(self) -> bool:
        """Whether other checkpoints, teachers or a reference, run beside the model."""
        return bool(self.objective.frozen_models)

    @property
    def has_reference_pass(self) -> bool:
        """Whether each micro-batch has one more forward pass, of a teacher or a reference model."""
        return self.switches_adapters_off or self.has_frozen_models or self.objective.runs_teachers

    @property
    def export_format(self) -> str:
        """The checkpoint format of the trained weights."""
        return "bf16" if self.train.qat == "none" else self.train.qat

    @property
    def datasets(self) -> list[DataConfig]:
        """The datasets of `data`."""
        return self.data if isinstance(self.data, list) else [self.data]

    @model_validator(mode="after")
    def _labels_differ(self) -> Self:
        names = [dataset.log_name for dataset in self.datasets]
        for index, name in enumerate(names):
            if name in names[:index]:
                first = names.index(name)
                raise ValueError(f"data.{first} and data.{index} are both called {name}; set data.{index}.label")
        return self

    @model_validator(mode="after")
    def _stages_have_prepared_documents(self) -> Self:
        if not self.batch.stages:
            return self
        if any(isinstance(dataset, RowsConfig) and dataset.stream for dataset in self.datasets):
            raise ValueError("batch.stages needs prepared rows; set data.stream to false")
        if self.objective.compares or self.objective.samples or self.train.drafter:
            raise ValueError("batch.stages is for objective.name cross_entropy without train.drafter; set it to []")
        return self

    @model_validator(mode="after")
    def _stages_are_reached(self) -> Self:
        for stage in self.batch.stages:
            if stage.from_step > self.steps:
                raise ValueError(
                    f"batch.stages has a from_step ({stage.from_step}) after the last of steps ({self.steps}); "
                    "remove that stage, or raise steps"
                )
        return self

    @model_validator(mode="after")
    def _mtp_weight_changes(self) -> Self:
        if self.loss.mtp_decay_weight is not None and self.schedule.name == "constant":
            raise ValueError(
                "loss.mtp_decay_weight needs another schedule.name than constant, which never falls; set it to null"
            )
        return self

    @model_validator(mode="after")
    def _z_loss_has_logits(self) -> Self:
        if self.loss.z_weight and (self.objective.name != "cross_entropy" or self.train.drafter):
            raise ValueError("loss.z_weight is for objective.name cross_entropy without train.drafter; set it to 0")
        return self

    @model_validator(mode="after")
    def _noise_scale_has_two_halves(self) -> Self:
        if self.logging.noise_scale_every is None:
            return self
        if self.objective.name != "cross_entropy" or self.train.drafter or self.train.indexer != "frozen":
            raise ValueError(
                "logging.noise_scale_every is for objective.name cross_entropy without train.drafter and with "
                "train.indexer frozen; set it to null"
            )
        if min(stage.global_size for _, stage in self.batch.each_stage()) < 2:
            raise ValueError(
                "logging.noise_scale_every compares halves of a step: batch.global_size must be at least 2"
            )
        return self

    def check_world(self, processes: int) -> None:
        """Check that the recipe can be trained by that many processes.

        Raises:
            ValueError: there are several, but weights are streamed from disk.
        """
        for wanted in self.objective.named_models:
            if processes > 1 and wanted.streamed:
                raise ValueError(
                    f"{wanted.key}: weights are streamed by one process only, not {processes}; set its offload to none"
                )
        if processes > 1 and self.model.offload == "stream":
            raise ValueError(
                f"model.offload stream is for one process, not for {processes}, which shard the weights; "
                "set it to none, or leave --nproc-per-node and --nnodes at 1"
            )

    @model_validator(mode="after")
    def _frozen_weights_are_consistent(self) -> Self:
        if self.model.quantized and not self.lora.targets and not self.train.drafter:
            raise ValueError(
                "model.quantized weights cannot be trained; list modules to adapt in lora.targets, or set it to false"
            )
        if self.model.numerics == "serving" and not self.model.quantized:
            raise ValueError(
                "model.numerics serving rounds inputs of quantized weights: set model.quantized, or choose released"
            )
        if self.model.offload == "stream" and (not self.model.quantized or self.model.weights is None):
            raise ValueError("model.offload stream needs model.weights to stream from, and model.quantized")
        if self.lora.targets and self.loss.bias_update_speed:
            raise ValueError("loss.bias_update_speed must be 0 with lora.targets: gates are frozen")
        if self.lora.targets and self.optimizer.name == "muon":
            raise ValueError("optimizer.name muon trains whole matrices; with lora.targets, use adamw")
        return self

    @model_validator(mode="after")
    def _rounded_weights_are_consistent(self) -> Self:
        if self.train.qat == "none":
            return self
        if self.lora.targets:
            raise ValueError("train.qat trains whole weights; with lora.targets, use lora.merge_into")
        if self.train.drafter:
            raise ValueError("train.qat must be none with train.drafter, which leaves the model's weights as they are")
        if self.model.numerics != "released":
            raise ValueError("train.qat trains for serving, which rounds keys too: set model.numerics to released")
        return self
