"""Datasets of the Hugging Face Hub: which files a split has, remembered so that later runs need no network."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from seektune.data.sources.data_file import DataFile, check_kind
from seektune.io.json_file import read_json, write_json
from seektune.io.text import one_line

SECONDS = 5
"""How long the Hub is waited for."""
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class HubDataset:
    """A dataset on the Hub."""

    id: str
    name: str | None
    """Of a configuration; None = the default one."""
    revision: str | None
    """Branch, tag or commit; None = the main branch."""
    folder: Path
    """Keeps the lists of files."""

    def refresh(self, note: Callable[[str], None]) -> None:
        """Ask the Hub for the present files; if it cannot be reached, those of the last time are used, with a note.

        Raises:
            ValueError: the Hub has no such dataset, configuration or revision.
            OSError: the Hub cannot be reached, and never was.
        """
        known = self.listing.exists()
        if known and _COMMIT.fullmatch(self.revision or ""):
            return
        try:
            splits = self._resolve()
        except OSError as error:
            if not known:
                raise
            note(f"note: {error}: its files of the last time are used")
            return
        self.listing.parent.mkdir(parents=True, exist_ok=True)
        write_json(self.listing, splits)

    def files(self, split: str) -> list[DataFile]:
        """The files of a split, as `refresh` found them last.

        Raises:
            ValueError: the split does not exist, or a file of it is not a file of rows.
            OSError: the Hub was never asked and cannot be reached.
        """
        if not self.listing.exists():
            self.refresh(lambda line: None)
        splits = read_json(self.listing)
        if split not in splits:
            raise ValueError(f"{self.id} has no split {split!r:.80}; its splits are {', '.join(splits)}")
        files = [DataFile(url, "") for url in splits[split]]
        for file in files:
            check_kind(file)
        return files

    @property
    def listing(self) -> Path:
        """The file that names the files of each split."""
        key = sha256("\n".join([self.id, self.name or "", self.revision or ""]).encode()).hexdigest()
        return self.folder / f"{key[:32]}.json"

    def _resolve(self) -> dict[str, list[str]]:
        import datasets
        import huggingface_hub
        from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

        try:
            # asked first, because the library would try an unreachable Hub for half a minute
            found = huggingface_hub.HfApi().dataset_info(self.id, revision=self.revision, timeout=SECONDS)
            builder = datasets.load_dataset_builder(self.id, self.name, revision=found.sha)
        except (RepositoryNotFoundError, datasets.exceptions.DatasetNotFoundError):
            raise ValueError(
                f"{self.id} is not a dataset on the Hub, or is private: check data.hub, or log in with `hf auth login`"
            ) from None
        except RevisionNotFoundError:
            raise ValueError(f"{self.id} has no revision {self.revision!r:.80}; check data.revision") from None
        except (ValueError, datasets.exceptions.DataFilesNotFoundError) as error:
            raise ValueError(f"{self.id}: {one_line(error)}") from None
        # what an unreachable Hub raises differs between releases of its library
        except Exception as error:
            raise OSError(
                f"{self.id}: the Hub cannot be reached ({one_line(error)}); fetch its files elsewhere and set data.path"
            ) from None
        files = builder.config.data_files or {}
        return {str(split): [*urls] for split, urls in files.items()}
