"""A job for SkyPilot: one task that finds its place among nodes and goes on where spot machines were lost."""

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
    """What SkyPilot is asked for, beside nodes."""

    gpu: str
    """Kind as SkyPilot names it."""
    image: str | None = None
    spot: bool = True
    cloud: str | None = None
    bucket: str | None = None
    """Such as s3://mine; for one node, as nodes do not see each other's files in it at once."""
    volume: str | None = None
    """A volume that all nodes can write."""

    def check(self, nodes: int) -> None:
        """Raises ValueError where checkpoints have no place that all nodes see."""
        if (self.bucket is None) == (self.volume is None):
            raise ValueError(
                "checkpoints need one place that outlives machines: --volume NAME, or --bucket URI on one node"
            )
        if self.bucket is not None and nodes > 1:
            raise ValueError(
                "nodes do not see each other's files in a bucket at once; several nodes need --volume NAME"
            )
        if self.bucket is not None and "://" not in self.bucket:
            raise ValueError(f"--bucket {self.bucket!r} must be a URI, such as s3://NAME")


def write_skypilot(task: JobSpec, asked: Skypilot) -> str:
    """The YAML.

    Raises:
        ValueError: a word that is no name for SkyPilot, or checkpoints without a place.
    """
    asked.check(task.nodes)
    checked_label("--name", task.name)
    resources: dict[str, Any] = {
        "accelerators": one_line("--gpu", f"{asked.gpu}:{task.gpus}"),
        "use_spot": asked.spot,
        # where all was saved on request, such as before a machine goes
        "job_recovery": {
            "strategy": "EAGER_NEXT_REGION",
            "max_restarts_on_errors": 3,
            "recover_on_exit_codes": [RESUME_ME],
        },
    }
    if asked.cloud is not None:
        resources["infra"] = one_line("--cloud", asked.cloud)
    if asked.image is not None:
        resources["image_id"] = f"docker:{one_line('--image', asked.image)}"
    made: dict[str, Any] = {"name": task.name, "num_nodes": task.nodes, "workdir": ".", "resources": resources}
    made["envs"] = task.environment.over({"HF_HOME": f"{WHERE}/huggingface", "NCCL_DEBUG": "WARN"})
    if names := task.environment.names:
        made["secrets"] = dict.fromkeys(names)
    if asked.volume is not None:
        made["volumes"] = {WHERE: checked_label("--volume", asked.volume)}
    else:
        made["file_mounts"] = {WHERE: {"source": one_line("--bucket", asked.bucket or ""), "mode": "MOUNT_CACHED"}}
    if asked.image is None:
        made["setup"] = "pip install -e .\n"
    made["run"] = RUN.format(command=shlex.join(task.command(["seektune"], f"{WHERE}/{task.name}")))
    text = _blocks(made)
    given = "".join(f" --secret {name}" for name in task.environment.names)
    return (
        f"# {task.nodes} nodes of {task.gpus} GPUs, written by seektune launch skypilot.\n"
        f"# A managed job starts again elsewhere when a spot machine is taken, and goes on from {WHERE}.\n"
        f"{text}# Submit, from the folder of the recipe:\n# sky jobs launch{given} FILE\n"
    )


class _Dumper(yaml.SafeDumper):
    """Texts of several lines as blocks, which people read."""


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text)


def _blocks(tree: dict[str, Any]) -> str:
    return str(yaml.dump(tree, Dumper=_Dumper, sort_keys=False, width=1000))
