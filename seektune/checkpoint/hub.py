"""Find a checkpoint: a local folder, or a repository on the Hugging Face Hub."""

import re
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

from seektune.io.other_formats import other_format

FILES = ["*.safetensors", "*.json", "*.jinja", "LICENSE*", "encoding/*"]


def is_hub_id(source: str) -> bool:
    """Whether a text has the form of a Hub repository's name."""
    return re.fullmatch(r"[\w.-]+/[\w.-]+", source) is not None


def locate(source: str | Path) -> Path:
    """The local folder of a checkpoint. A Hub id is downloaded first; an interrupted download is resumed.

    Raises:
        ValueError: `source` is neither a folder nor an existing Hub repository, or holds weights that are not read.
        OSError: the Hub cannot be reached.
    """
    folder = Path(source)
    if str(source) and (other := other_format(folder)) is not None:
        raise ValueError(other)
    if str(source) and folder.is_dir():
        return folder
    if not is_hub_id(str(source)):
        raise ValueError(f"{str(source) or 'an empty name'} is neither a folder nor a Hub id (organisation/name)")
    try:
        return Path(snapshot_download(str(source), allow_patterns=FILES))
    except RepositoryNotFoundError:
        raise ValueError(f"{source} is neither a local folder nor a Hub repository that you can access") from None
    except (LocalEntryNotFoundError, HfHubHTTPError) as error:
        reason = str(error).strip().splitlines()[0].removeprefix("Got: ")
        raise OSError(f"{source} is not a local folder, and the Hub cannot be reached: {reason}") from None
