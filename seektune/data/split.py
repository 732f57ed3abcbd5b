"""Names of the splits of a dataset; imports nothing heavy, as options of commands use them."""

from typing import Literal

Split = Literal["train", "validation"]
