"""A job for Kubernetes: a TrainJob of Kubeflow Trainer v2, or a PyTorchJob of its Training Operator v1."""

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
PLACE = {
    "trainjob": 'exec "$@" --node-rank="$PET_NODE_RANK" --rdzv-endpoint="$PET_MASTER_ADDR:$PET_MASTER_PORT"',
    "pytorchjob": 'exec "$@" --node-rank="$RANK" --rdzv-endpoint="$MASTER_ADDR:$MASTER_PORT"',
}
"""What each kind's controller says of a node's place, handed on to the launcher."""


@dataclass(frozen=True)
class Kubernetes:
    """What the cluster is asked for, beside nodes and GPUs."""

    image: str
    pvc: str
    """A claim that all nodes can write (ReadWriteMany)."""
    kind: Literal["trainjob", "pytorchjob"] = "trainjob"
    namespace: str = "default"
    mount: str = "/checkpoints"
    shm: str = "64Gi"
    secret: str = "seektune"
    """Holds what is passed by name."""
    restarts: int = 10
    runtime: str = "torch-distributed"


def write_kubernetes(task: JobSpec, asked: Kubernetes) -> str:
    """The YAML.

    Raises:
        ValueError: a word that is no name, path or amount for Kubernetes.
    """
    for what, name in (("--name", task.name), ("--namespace", asked.namespace), ("--secret", asked.secret)):
        checked_label(what, name)
    for what, name in (("--pvc", asked.pvc), ("--runtime", asked.runtime)):
        checked_label(what, name)
    if not task.name[0].isalpha():
        raise ValueError(f"--name {task.name!r} must begin with a letter")
    if not one_line("--image", asked.image).strip():
        raise ValueError("--image is empty")
    if not PATH.fullmatch(one_line("--mount", asked.mount)):
        raise ValueError(f"--mount {asked.mount!r} must be a path from / without a colon")
    if not QUANTITY.fullmatch(asked.shm):
        raise ValueError(f"--shm {asked.shm!r} must be an amount of memory, such as 64Gi")
    made = _train_job(task, asked) if asked.kind == "trainjob" else _pytorch_job(task, asked)
    return f"{_remarks(task, asked)}{yaml.safe_dump(made, sort_keys=False, width=110)}{_farewell(task, asked)}"


def _remarks(task: JobSpec, asked: Kubernetes) -> str:
    return (
        f"# {task.nodes} nodes of {task.gpus} GPUs, written by seektune launch kubernetes.\n"
        f"# A pod that must go has {task.seconds} s: it gets SIGTERM, all workers save, and a pod in its place\n"
        f"# goes on from the newest checkpoint in {asked.pvc}. /dev/shm is memory: workers and NCCL share it.\n"
    )


def _farewell(task: JobSpec, asked: Kubernetes) -> str:
    lines = ["# Submit:"]
    if names := task.environment.names:
        words = " ".join(f'--from-literal={name}="${name}"' for name in names)
        lines.append(f"# kubectl create secret generic {asked.secret} --namespace {asked.namespace} {words}")
    return "\n".join((*lines, "# kubectl apply -f FILE", ""))


def _train_job(task: JobSpec, asked: Kubernetes) -> Tree:
    pod = {
        "terminationGracePeriodSeconds": task.seconds,
        "containers": [{"name": "node", "volumeMounts": _mounts(asked)}],
        "volumes": _volumes(asked),
    }
    patch = {
        "template": {"spec": {"replicatedJobs": [{"name": "node", "template": {"spec": {"template": {"spec": pod}}}}]}}
    }
    return {
        "apiVersion": "trainer.kubeflow.org/v1alpha1",
        "kind": "TrainJob",
        "metadata": {"name": task.name, "namespace": asked.namespace},
        "spec": {
            "runtimeRef": {"name": asked.runtime, "kind": "ClusterTrainingRuntime"},
            "trainer": {
                "image": asked.image,
                "numNodes": task.nodes,
                "numProcPerNode": task.gpus,
                **_command(task, asked),
                "env": _environment(task, asked),
                "resourcesPerNode": _gpus(task),
            },
            "runtimePatches": [{"manager": "seektune.io/launch", "trainingRuntimeSpec": patch}],
        },
    }


def _pytorch_job(task: JobSpec, asked: Kubernetes) -> Tree:
    container = {
        "name": "pytorch",
        "image": asked.image,
        **_command(task, asked),
        "env": _environment(task, asked),
        "resources": _gpus(task),
        "volumeMounts": _mounts(asked),
    }
    pod = {
        "terminationGracePeriodSeconds": task.seconds,
        "containers": [container],
        "volumes": _volumes(asked),
    }
    # a worker ends with RESUME_ME where it saved on request, which OnFailure starts again in the same pod
    kinds = {"Master": 1, "Worker": task.nodes - 1}
    replicas = {
        kind: {"replicas": count, "restartPolicy": "OnFailure", "template": {"spec": pod}}
        for kind, count in kinds.items()
        if count
    }
    return {
        "apiVersion": "kubeflow.org/v1",
        "kind": "PyTorchJob",
        "metadata": {"name": task.name, "namespace": asked.namespace},
        "spec": {
            "nprocPerNode": str(task.gpus),
            "runPolicy": {"cleanPodPolicy": "None", "backoffLimit": asked.restarts},
            "pytorchReplicaSpecs": replicas,
        },
    }


def _command(task: JobSpec, asked: Kubernetes) -> Tree:
    words = [*task.command(["seektune"], f"{asked.mount}/{task.name}"), f"--nnodes={task.nodes}"]
    place = PLACE[asked.kind] if task.nodes > 1 else 'exec "$@"'
    return {"command": ["bash", "-c", place, "seektune"], "args": [_literal(word) for word in words]}


def _literal(text: str) -> str:
    """The text as it must stand there: Kubernetes replaces $(NAME), and takes $$ for one sign."""
    return text.replace("$", "$$")


def _environment(task: JobSpec, asked: Kubernetes) -> list[Tree]:
    usual = {"HF_HOME": f"{asked.mount}/huggingface", "NCCL_DEBUG": "WARN"}
    plain: Mapping[str, str] = task.environment.over(usual)
    secrets: Sequence[Tree] = [
        {"name": name, "valueFrom": {"secretKeyRef": {"name": asked.secret, "key": name}}}
        for name in task.environment.names
    ]
    return [*({"name": name, "value": _literal(value)} for name, value in plain.items()), *secrets]


def _gpus(task: JobSpec) -> Tree:
    return {"limits": {"nvidia.com/gpu": task.gpus}}


def _mounts(asked: Kubernetes) -> list[Tree]:
    return [{"name": "checkpoints", "mountPath": asked.mount}, {"name": "shm", "mountPath": "/dev/shm"}]


def _volumes(asked: Kubernetes) -> list[Tree]:
    return [
        {"name": "checkpoints", "persistentVolumeClaim": {"claimName": asked.pvc}},
        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": asked.shm}},
    ]
