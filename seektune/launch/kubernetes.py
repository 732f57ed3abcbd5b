"""Writes a job for Kubernetes: a TrainJob of Kubeflow Trainer v2, or a PyTorchJob of its Training Operator v1."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import yaml

from seektune.launch.job_spec import JobSpec, checked_label, one_line

QUANTITY = re.compile(r"[0-9]+(\.[0-9]+)?([KMGTP]i?)?")
"""An amount of memory."""
PATH = re.compile(r"/[^:]*")
Tree: TypeAlias = dict[str, Any]
START = {
    "trainjob": 'exec "$@" --node-rank="$PET_NODE_RANK" --rdzv-endpoint="$PET_MASTER_ADDR:$PET_MASTER_PORT"',
    "pytorchjob": 'exec "$@" --node-rank="$RANK" --rdzv-endpoint="$MASTER_ADDR:$MASTER_PORT"',
}
"""Passes the node rank and endpoint that each kind's controller sets to the launcher."""


@dataclass(frozen=True)
class Kubernetes:
    """Options of the job, in addition to nodes and GPUs."""

    image: str
    pvc: str
    """A claim that all nodes can write to (ReadWriteMany)."""
    kind: Literal["trainjob", "pytorchjob"] = "trainjob"
    namespace: str = "default"
    mount: str = "/checkpoints"
    shm: str = "64Gi"
    secret: str = "seektune"
    """Holds the variables that are passed by name."""
    restarts: int = 10
    runtime: str = "torch-distributed"


def write_kubernetes(spec: JobSpec, options: Kubernetes) -> str:
    """The job as YAML.

    Raises:
        ValueError: an option is not a valid name, path or amount, or the run's folder is not on the claim.
    """
    for what, name in (("--name", spec.name), ("--namespace", options.namespace), ("--secret", options.secret)):
        checked_label(what, name)
    for what, name in (("--pvc", options.pvc), ("--runtime", options.runtime)):
        checked_label(what, name)
    if not spec.name[0].isalpha():
        raise ValueError(f"--name {spec.name!r} must begin with a letter")
    if not one_line("--image", options.image).strip():
        raise ValueError("--image is empty")
    if not PATH.fullmatch(one_line("--mount", options.mount)):
        raise ValueError(f"--mount {options.mount!r} must be a path from / without a colon")
    spec.check_storage(options.mount)
    if not QUANTITY.fullmatch(options.shm):
        raise ValueError(f"--shm {options.shm!r} must be an amount of memory, such as 64Gi")
    made = _train_job(spec, options) if options.kind == "trainjob" else _pytorch_job(spec, options)
    return f"{_header(spec, options)}{yaml.safe_dump(made, sort_keys=False, width=110)}{_footer(spec, options)}"


def _header(spec: JobSpec, options: Kubernetes) -> str:
    return (
        f"# {spec.nodes} nodes of {spec.gpus} GPUs, written by seektune launch kubernetes.\n"
        f"# An evicted pod has {spec.seconds} s: it gets SIGTERM, all workers save, and the pod that replaces it\n"
        f"# resumes from the newest checkpoint in {options.pvc}. /dev/shm is memory, shared by workers and NCCL.\n"
    )


def _footer(spec: JobSpec, options: Kubernetes) -> str:
    lines = ["# Submit:"]
    if names := spec.environment.names:
        words = " ".join(f'--from-literal={name}="${name}"' for name in names)
        lines.append(f"# kubectl create secret generic {options.secret} --namespace {options.namespace} {words}")
    return "\n".join((*lines, "# kubectl apply -f FILE", ""))


def _train_job(spec: JobSpec, options: Kubernetes) -> Tree:
    pod = {
        "terminationGracePeriodSeconds": spec.seconds,
        "containers": [{"name": "node", "volumeMounts": _mounts(options)}],
        "volumes": _volumes(options),
    }
    patch = {
        "template": {"spec": {"replicatedJobs": [{"name": "node", "template": {"spec": {"template": {"spec": pod}}}}]}}
    }
    return {
        "apiVersion": "trainer.kubeflow.org/v1alpha1",
        "kind": "TrainJob",
        "metadata": {"name": spec.name, "namespace": options.namespace},
        "spec": {
            "runtimeRef": {"name": options.runtime, "kind": "ClusterTrainingRuntime"},
            "trainer": {
                "image": options.image,
                "numNodes": spec.nodes,
                "numProcPerNode": spec.gpus,
                **_command(spec, options),
                "env": _environment(spec, options),
                "resourcesPerNode": _gpus(spec),
            },
            "runtimePatches": [{"manager": "seektune.io/launch", "trainingRuntimeSpec": patch}],
        },
    }


def _pytorch_job(spec: JobSpec, options: Kubernetes) -> Tree:
    container = {
        "name": "pytorch",
        "image": options.image,
        **_command(spec, options),
        "env": _environment(spec, options),
        "resources": _gpus(spec),
        "volumeMounts": _mounts(options),
    }
    pod = {
        "terminationGracePeriodSeconds": spec.seconds,
        "containers": [container],
        "volumes": _volumes(options),
    }
    # a worker that saved on request exits with RESUME_ME, which OnFailure restarts in the same pod
    kinds = {"Master": 1, "Worker": spec.nodes - 1}
    replicas = {
        kind: {"replicas": count, "restartPolicy": "OnFailure", "template": {"spec": pod}}
        for kind, count in kinds.items()
        if count
    }
    return {
        "apiVersion": "kubeflow.org/v1",
        "kind": "PyTorchJob",
        "metadata": {"name": spec.name, "namespace": options.namespace},
        "spec": {
            "nprocPerNode": str(spec.gpus),
            "runPolicy": {"cleanPodPolicy": "None", "backoffLimit": options.restarts},
            "pytorchReplicaSpecs": replicas,
        },
    }


def _command(spec: JobSpec, options: Kubernetes) -> Tree:
    words = [*spec.command(["seektune"], f"{options.mount}/{spec.name}"), f"--nnodes={spec.nodes}"]
    start = START[options.kind] if spec.nodes > 1 else 'exec "$@"'
    return {"command": ["bash", "-c", start, "seektune"], "args": [_literal(word) for word in words]}


def _literal(text: str) -> str:
    """The text escaped for Kubernetes, which expands $(NAME) and reads $$ as one $."""
    return text.replace("$", "$$")


def _environment(spec: JobSpec, options: Kubernetes) -> list[Tree]:
    defaults = {"HF_HOME": f"{options.mount}/huggingface", "NCCL_DEBUG": "WARN"}
    plain: Mapping[str, str] = spec.environment.with_defaults(defaults)
    secrets: Sequence[Tree] = [
        {"name": name, "valueFrom": {"secretKeyRef": {"name": options.secret, "key": name}}}
        for name in spec.environment.names
    ]
    return [*({"name": name, "value": _literal(value)} for name, value in plain.items()), *secrets]


def _gpus(spec: JobSpec) -> Tree:
    return {"limits": {"nvidia.com/gpu": spec.gpus}}


def _mounts(options: Kubernetes) -> list[Tree]:
    return [{"name": "checkpoints", "mountPath": options.mount}, {"name": "shm", "mountPath": "/dev/shm"}]


def _volumes(options: Kubernetes) -> list[Tree]:
    return [
        {"name": "checkpoints", "persistentVolumeClaim": {"claimName": options.pvc}},
        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": options.shm}},
    ]
