"""Weights & Biases, by its own client (extra `wandb`)."""

from collections.abc import Sequence
from typing import Any

import wandb
from requests.utils import get_netrc_auth

from seektune.train.trackers.tracker import TrackedRun, TrackedValues

STEP = "step"
"""The x axis of all curves; steps of its own would refuse one that is repeated after a rollback."""


class WandbTracker:
    """A run of Weights & Biases; its files are in the run folder. Address and key are those of `wandb login`.

    Raises:
        ValueError: there is no API key, which the client would ask for on the terminal.
    """

    name = "wandb"

    def __init__(self, run: TrackedRun):
        self._run = run
        self._client: Any = None
        defaults = wandb.setup().settings
        mode = "offline" if run.offline else defaults.mode
        # no command line, packages, source or output: they may hold secrets
        self._settings = wandb.Settings(
            mode=mode,
            silent=True,
            console="off",
            x_disable_meta=True,
            x_disable_machine_info=True,
            x_save_requirements=False,
            disable_git=True,
            disable_code=True,
            save_code=False,
            init_timeout=run.timeout,
            finish_timeout=run.timeout,
        )
        if mode == "online" and not _has_key(defaults):
            raise ValueError(
                "logging.to: wandb has no API key; run `wandb login`, set WANDB_API_KEY, or set logging.offline"
            )

    def open(self) -> None:
        """As `Tracker`."""
        self._client = wandb.init(
            project=self._run.project,
            name=self._run.name,
            id=self._run.id,
            resume="allow",
            dir=self._run.folder,
            config=dict(self._run.config),
            settings=self._settings,
        )
        self._client.define_metric("*", step_metric=STEP)

    def log(self, records: Sequence[TrackedValues]) -> None:
        """As `Tracker`."""
        for record in records:
            self._client.log({STEP: record.step, **record.values})

    def close(self, finished: bool) -> None:
        """As `Tracker`."""
        self._client.finish(exit_code=0 if finished else 1)


def _has_key(settings: wandb.Settings) -> bool:
    """Whether the client finds credentials for its server: in the environment, its settings or .netrc."""
    found = settings.api_key or settings.identity_token_file or get_netrc_auth(settings.base_url)
    return bool(found)
