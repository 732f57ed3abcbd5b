"""The section `batch` of a recipe."""

from typing import Annotated, Literal, Self

from pydantic import Field, PositiveInt, ValidationInfo, field_validator, model_validator

from seektune.section import Section

OverlongChoice = Literal["error", "drop", "cut", "split"]
BECOMES = {"drop": "left out", "cut": "cut", "split": "split"}
"""What becomes of an example that is longer than a row, by `batch.overlong`, in messages."""


GlobalSize = Annotated[int, Field(gt=0, le=10**6)]


class BatchStageConfig(Section):
    """Another batch size or row length from a step on."""

    from_step: Annotated[int, Field(ge=2)]
    """First step of the stage."""
    global_size: GlobalSize | None = None
    """Rows per optimizer step; null = as before."""
    micro_size: PositiveInt | None = None
    """Rows per forward; null = as before."""
    length: PositiveInt | None = None
    """Maximum tokens of a row; null = as before. Another length begins the rows anew, in another order."""


class BatchConfig(Section):
    """Batch size and row length."""

    global_size: GlobalSize
    """Rows per optimizer step."""
    micro_size: PositiveInt = 1
    """Rows per forward; must divide `global_size`."""
    length: PositiveInt
    """Maximum tokens of a row."""
    pack: bool = False
    """Whether a row of `length` tokens holds several examples (each sees only itself) or one."""
    overlong: OverlongChoice = "error"
    """What happens to an example longer than `length`: training refuses to start, the example is left out, it is cut
    after `length` tokens, or it is split into examples of at most `length` tokens."""
    stages: tuple[BatchStageConfig, ...] = ()
    """Later stages of the run, with larger batches or longer rows, each until the next one begins."""

    @field_validator("micro_size")
    @classmethod
    def _divides(cls, micro_size: int, info: ValidationInfo) -> int:
        global_size = info.data.get("global_size", micro_size)
        if global_size % micro_size:
            raise ValueError(f"micro_size {micro_size} must divide global_size {global_size}")
        return micro_size

    @model_validator(mode="after")
    def _stages_are_in_order(self) -> Self:
        steps = [stage.from_step for stage in self.stages]
        if steps != sorted(set(steps)):
            raise ValueError(f"stages must be in order of from_step, each once, not {', '.join(map(str, steps))}")
        for first, stage in self.each_stage():
            if stage.global_size % stage.micro_size:
                raise ValueError(
                    f"micro_size {stage.micro_size} must divide global_size {stage.global_size} from step {first} on"
                )
        return self

    def each_stage(self) -> "list[tuple[int, BatchConfig]]":
        """The first step of each stage, and the batches of that stage, without later ones; the first begins at 1."""
        found = [(1, self.model_copy(update={"stages": ()}))]
        for stage in self.stages:
            changes = stage.model_dump(exclude={"from_step"}, exclude_none=True)
            found.append((stage.from_step, found[-1][1].model_copy(update=changes)))
        return found

    def largest_stage(self) -> "BatchConfig":
        """The stage that needs most memory: by the tokens of a forward, then by the length of rows and their number."""
        stages = [stage for _, stage in self.each_stage()]
        return max(stages, key=lambda each: (each.micro_size * each.length, each.length, each.global_size))
