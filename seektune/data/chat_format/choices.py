"""Names of the chat format's encodings, as recipes and options spell them; imports nothing."""

from typing import Literal

EncodingName = Literal["preview", "0731", "v41"]
DEFAULT: EncodingName = "preview"
