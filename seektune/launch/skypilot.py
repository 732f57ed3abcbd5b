"""Writes a job for SkyPilot: one task that reads its node rank and resumes after spot machines were lost."""

import shlex
from dataclasses import dataclass
from typing import Any

import yaml

from seektune.exit_codes import RESUME_ME
from seektune.launch.job_spec import JobSpec, checked_label, one_line

WHERE = "/checkpoints"
RUN = """set -uo pipefail
host=$(printf '%s\\n' "$SKYPILOT_NODE_IPS" | head -n1)
exec {command} \\
  --nnodes="$SKYPILOT_NUM_NODES" --node-rank="$SKYPILOT_NODE_RANK" --rdzv-endpoint="$host:29500"
"""


@dataclass(frozen=True)
class Skypilot:
    """Options of the job, in addition to nodes."""

    gpu: str
    """The accelerator, as SkyPilot names it."""
    image: str | None = None
    spot: bool = True
    cloud: str | None = None
    bucket: str | None = None
    """Such as s3://mine; one node only, as nodes see each other's files in a bucket late."""
    volume: str | None = None
    """A volume that all nodes can write to."""

    def check(self, nodes: int) -> None:
        """Raises ValueError if checkpoints have no storage that all nodes share."""
        if (self.bucket is None) == (self.volume is None):
            raise ValueError("checkpoints need one persistent storage: --volume NAME, or --bucket URI on one node")
        if self.bucket is not None and nodes > 1:
            raise ValueError("nodes see each other's files in a bucket late; several nodes need --volume NAME")
        if self.bucket is not None and "://" not in self.bucket:
            raise ValueError(f"--bucket {self.bucket!r} must be a URI, such as s3://NAME")


def write_skypilot(spec: JobSpec, options: Skypilot) -> str:
    """The task as YAML.

    Raises:
        ValueError: an option is not a valid name, or checkpoints have no shared storage.
    """
    options.check(spec.nodes)
    checked_label("--name", spec.name)
    spec.check_storage(WHERE)
    resources: dict[str, Any] = {
        "accelerators": one_line("--gpu", f"{options.gpu}:{spec.gpus}"),
        "use_spot": options.spot,
        # where it saved on request, such as before a machine is taken back
        "job_recovery": {
            "strategy": "EAGER_NEXT_REGION",
            "max_restarts_on_errors": 3,
            "recover_on_exit_codes": [RESUME_ME],
        },
    }
    if options.cloud is not None:
        resources["infra"] = one_line("--cloud", options.cloud)
    if options.image is not None:
        resources["image_id"] = f"docker:{one_line('--image', options.image)}"
    made: dict[str, Any] = {"name": spec.name, "num_nodes": spec.nodes, "workdir": ".", "resources": resources}
    made["envs"] = spec.environment.with_defaults({"HF_HOME": f"{WHERE}/huggingface", "NCCL_DEBUG": "WARN"})
    if names := spec.environment.names:
        made["secrets"] = dict.fromkeys(names)
    if options.volume is not None:
        made["volumes"] = {WHERE: checked_label("--volume", options.volume)}
    else:
        made["file_mounts"] = {WHERE: {"source": one_line("--bucket", options.bucket or ""), "mode": "MOUNT_CACHED"}}
    if options.image is None:
        made["setup"] = "pip install -e .\n"
    made["run"] = RUN.format(command=shlex.join(spec.command(["seektune"], f"{WHERE}/{spec.name}")))
    text = _dump(made)
    secrets = "".join(f" --secret {name}" for name in spec.environment.names)
    return (
        f"# {spec.nodes} nodes of {spec.gpus} GPUs, written by seektune launch skypilot.\n"
        f"# A managed job restarts elsewhere when a spot machine is taken back, and resumes from {WHERE}.\n"
        f"{text}# Submit, from the folder of the recipe:\n# sky jobs launch{secrets} FILE\n"
    )


class _Dumper(yaml.SafeDumper):
    """Writes strings of several lines as readable blocks."""


def _represent_str(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _represent_str)


def _dump(tree: dict[str, Any]) -> str:
    return str(yaml.dump(tree, Dumper=_Dumper, sort_keys=False, width=1000))
