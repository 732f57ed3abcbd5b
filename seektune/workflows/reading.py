"""How a checkpoint is read by the verbs that let it work: in which precision, packed or not, with which adapter."""

from dataclasses import dataclass
from pathlib import Path

from seektune.model.adapter_files import load_adapter
from seektune.model.causal_lm import DeepseekV4ForCausalLM
from seektune.workflows.prepare import DTYPES, choose_device


@dataclass(frozen=True)
class Reading:
    """How a checkpoint is read."""

    dtype: str | None = None
    """`fp32` or `bf16`; None = fp32 on a CPU, bf16 on a GPU."""
    numerics: str = "plain"
    packed: bool = False
    """Keep FP4 and FP8 weights in their bytes, multiplied out while they are used."""
    adapter: Path | None = None
    """Folder of an adapter that is put on."""

    def read(self, name: str) -> DeepseekV4ForCausalLM:
        """The model of a checkpoint folder in any of our formats, or a Hub id.

        Raises:
            ValueError: it or the adapter cannot be read, or they do not belong together.
            OSError: as of reading a model.
        """
        self.check()
        device = choose_device()
        dtype = DTYPES[self.dtype or ("fp32" if device.type == "cpu" else "bf16")]
        model = DeepseekV4ForCausalLM.from_pretrained(name, dtype, self.numerics, device, self.packed)
        if self.adapter is not None:
            load_adapter(model, self.adapter)
        return model

    def check(self) -> None:
        """Refuse an adapter that is not there, before weights are read.

        Raises:
            ValueError: it is not.
        """
        if self.adapter is not None and not self.adapter.is_dir():
            raise ValueError(f"--adapter {self.adapter}: no such folder")


AS_STORED = Reading()
