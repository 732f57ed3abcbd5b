"""Jobs for Kubernetes and SkyPilot follow their schemas, and contain no secrets and no unquoted shell text."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from seektune.launch.job_spec import Environment, JobSpec
from seektune.launch.kubernetes import Kubernetes, write_kubernetes
from seektune.launch.skypilot import Skypilot, write_skypilot

HOSTILE = 'it\'s "a" $(touch gone) `touch gone` $(HOME) $$(HOME) $$$ ; # \\ *: é'
ENVIRONMENT = Environment(("HF_TOKEN",), (("A", HOSTILE),))
TASK = JobSpec(HOSTILE, (f"--data.path={HOSTILE}",), 4, 8, "mine", ENVIRONMENT, seconds=300)
ALONE = JobSpec("r.yaml", (), 1, 1, "mine")
JOBS = [(task, kind) for task in (TASK, ALONE) for kind in ("trainjob", "pytorchjob")]

SKY = {"name", "num_nodes", "workdir", "resources", "envs", "secrets", "volumes", "file_mounts", "setup", "run"}
SKY_RESOURCES = {"accelerators", "use_spot", "job_recovery", "infra", "image_id"}
SKY_RECOVERY = {"strategy", "max_restarts_on_errors", "recover_on_exit_codes"}
"""Keys from SkyPilot's documentation that are used here; skypilot itself has a hundred dependencies."""


def kubernetes(task: JobSpec, kind: Any) -> dict[str, Any]:
    return dict(yaml.safe_load(write_kubernetes(task, Kubernetes("ghcr.io/you/it:1", "ck", kind))))


def understood(job: dict[str, Any]) -> dict[str, Any]:
    """A job parsed by Kubeflow's models: unknown keys are dropped, wrong types are refused."""
    # hundreds of modules, which take a second
    from kubeflow.training import ApiClient, KubeflowOrgV1PyTorchJob
    from kubeflow_trainer_api.models import IoK8sApiCoreV1PodTemplateSpec, TrainerV1alpha1TrainJob

    if job["kind"] == "TrainJob":
        return dict(TrainerV1alpha1TrainJob.from_dict(job).to_dict())
    client = ApiClient()
    response = type("Response", (), {"data": json.dumps(job)})
    kept = client.sanitize_for_serialization(client.deserialize(response, KubeflowOrgV1PyTorchJob))
    for kind, replica in kept["spec"]["pytorchReplicaSpecs"].items():
        template = job["spec"]["pytorchReplicaSpecs"][kind]["template"]
        replica["template"] = IoK8sApiCoreV1PodTemplateSpec.from_dict(template).to_dict()
    return dict(kept)


@pytest.mark.parametrize(("task", "kind"), JOBS)
def test_job_follows_the_schema(task: JobSpec, kind: str) -> None:
    job = kubernetes(task, kind)
    assert understood(job) == job


def places(tree: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths of all keys."""
    children = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    found = [path] if path and isinstance(path[-1], str) else []
    return found + [place for key, value in children for place in places(value, (*path, key))]


FREE = {"limits", "pytorchReplicaSpecs"}
"""Mappings whose keys are free names."""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["trainjob", "pytorchjob"])
def test_schema_check_finds_every_misspelt_key(kind: str) -> None:
    for path in places(kubernetes(TASK, kind)):
        if (len(path) > 1 and path[-2] in FREE) or path == ("kind",):
            continue
        job = kubernetes(TASK, kind)
        parent: Any = job
        for step in path[:-1]:
            parent = parent[step]
        parent[f"{path[-1]}x"] = parent.pop(path[-1])
        try:
            kept = understood(job)
        except (ValueError, KeyError, TypeError):
            continue
        assert kept != job, path


@pytest.mark.parametrize("kind", ["trainjob", "pytorchjob"])
def test_pod_has_grace_period_shared_memory_and_claim(kind: str) -> None:
    text = write_kubernetes(TASK, Kubernetes("image", "ck", kind))
    assert "terminationGracePeriodSeconds: 300" in text
    assert "medium: Memory" in text
    assert "claimName: ck" in text
    assert "nvidia.com/gpu: 8" in text
    assert "--shutdown-timeout=270" in text
    assert "secretKeyRef" in text


def replaced(word: str) -> str:
    """A word after Kubernetes' expansion: $$ is one $, $(NAME) a variable."""
    return re.sub(r"\$(\$|\([^)]*\))", lambda found: "$" if found[1] == "$" else "a variable", word)


def run_words(command: list[str], args: list[str], folder: Path, **variables: str) -> list[str]:
    """The arguments with which a container would call seektune, after Kubernetes' expansion."""
    door = folder / "seektune"
    door.write_text("#!/bin/sh\nprintf '%s\\0' \"$@\"\n")
    door.chmod(0o755)
    environment = {"PATH": f"{folder}:/usr/bin:/bin", **variables}
    done = subprocess.run([*command, *args], capture_output=True, text=True, check=True, env=environment, cwd=folder)
    assert [file.name for file in folder.iterdir()] == ["seektune"]
    return done.stdout.split("\0")[:-1]


def test_hostile_words_reach_the_container_unchanged(tmp_path: Path) -> None:
    trainer = kubernetes(TASK, "trainjob")["spec"]["trainer"]
    places = {"PET_NODE_RANK": "3", "PET_MASTER_ADDR": "h", "PET_MASTER_PORT": "1"}
    command, args = (list(map(replaced, trainer[kind])) for kind in ("command", "args"))
    words = run_words(command, args, tmp_path, **places)
    assert words[1:3] == [HOSTILE, f"--data.path={HOSTILE}"]
    assert words[-2:] == ["--node-rank=3", "--rdzv-endpoint=h:1"]
    assert replaced({each["name"]: each.get("value") for each in trainer["env"]}["A"]) == HOSTILE


@pytest.mark.parametrize("kind", ["trainjob", "pytorchjob"])
def test_variable_passed_by_name_has_no_default(kind: str) -> None:
    task = replace(ALONE, environment=Environment(("NCCL_DEBUG",)))
    assert write_kubernetes(task, Kubernetes("i", "ck", kind)).count("- name: NCCL_DEBUG") == 1
    made = yaml.safe_load(write_skypilot(task, Skypilot("H100", volume="ck")))
    assert (made["secrets"], "NCCL_DEBUG" in made["envs"]) == ({"NCCL_DEBUG": None}, False)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"image": " "}, "--image is empty"),
        ({"mount": "relative"}, "--mount 'relative' must be a path from /"),
        ({"mount": "/a:b"}, "--mount '/a:b' must be a path from /"),
        ({"mount": "/a\nb"}, "--mount must be one line"),
        ({"shm": "lots"}, "--shm 'lots' must be an amount"),
        ({"shm": "1Gi\n"}, "--shm '1Gi.n' must be an amount"),
    ],
)
def test_invalid_kubernetes_options_are_refused(changes: dict[str, str], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        write_kubernetes(ALONE, replace(Kubernetes("i", "ck"), **changes))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="--name '1x' must begin with a letter"):
        write_kubernetes(replace(ALONE, name="1x"), Kubernetes("i", "ck"))


@pytest.mark.parametrize("name", ["Mine", "a b", "a_b", "-a", "a" * 51, "a\nb", ""])
def test_invalid_kubernetes_names_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="only lowercase letters"):
        write_kubernetes(JobSpec("r", (), 1, 1, name), Kubernetes("i", "ck"))
    with pytest.raises(ValueError, match="only lowercase letters"):
        write_kubernetes(ALONE, Kubernetes("i", name))


def test_skypilot_task_has_documented_keys_and_passes_shellcheck(tmp_path: Path) -> None:
    for task, asked in (
        (TASK, Skypilot("H100", image="ghcr.io/you/it:1", cloud="aws", volume="ck")),
        (ALONE, Skypilot("H200", bucket="s3://mine", spot=False)),
    ):
        made = yaml.safe_load(write_skypilot(task, asked))
        assert set(made) <= SKY
        assert set(made["resources"]) <= SKY_RESOURCES
        assert set(made["resources"]["job_recovery"]) <= SKY_RECOVERY
        assert made["resources"]["accelerators"] == f"{asked.gpu}:{task.gpus}"
        script = tmp_path / "run.sh"
        script.write_text(made["run"])
        check = [f"{sys.prefix}/bin/shellcheck", "--shell=bash", "--exclude=SC2016", str(script)]
        shellcheck = subprocess.run(check, capture_output=True, text=True, check=False)
        assert (shellcheck.returncode, shellcheck.stdout) == (0, "")
    assert made["file_mounts"] == {"/checkpoints": {"source": "s3://mine", "mode": "MOUNT_CACHED"}}


def test_skypilot_task_runs_the_command(tmp_path: Path) -> None:
    made = yaml.safe_load(write_skypilot(TASK, Skypilot("H100", volume="ck")))
    assert made["secrets"] == {"HF_TOKEN": None}
    variables = {"SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2", "SKYPILOT_NUM_NODES": "4", "SKYPILOT_NODE_RANK": "1"}
    words = run_words(["bash", "-c", made["run"]], [], tmp_path, **variables)
    assert words[1:3] == [HOSTILE, f"--data.path={HOSTILE}"]
    assert words[-3:] == ["--nnodes=4", "--node-rank=1", "--rdzv-endpoint=10.0.0.1:29500"]


@pytest.mark.parametrize(
    ("nodes", "asked", "said"),
    [
        (1, Skypilot("H100"), "--volume NAME, or --bucket"),
        (2, Skypilot("H100", bucket="s3://a"), "several nodes need --volume"),
        (1, Skypilot("H100", bucket="a"), "must be a URI"),
        (1, Skypilot("H100", bucket="s3://a", volume="b"), "need one persistent storage"),
    ],
)
def test_checkpoints_without_shared_storage_are_refused(nodes: int, asked: Skypilot, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        write_skypilot(JobSpec("r", (), nodes, 8, "mine"), asked)


@pytest.mark.parametrize("folder", ["runs/mine", "/s/mine", "/checkpoints", "/checkpoints/../s", "/checkpointsmine/a"])
def test_a_run_folder_that_is_lost_with_the_node_is_refused(folder: str) -> None:
    task = replace(ALONE, run_dir=folder)
    said = rf"run_dir '{folder}' is not below /checkpoints: .*set --run_dir=/checkpoints/mine"
    with pytest.raises(ValueError, match=said):
        write_kubernetes(task, Kubernetes("i", "ck"))
    with pytest.raises(ValueError, match=said):
        write_skypilot(task, Skypilot("H100", volume="ck"))


def test_a_run_folder_below_the_mount_is_kept() -> None:
    task = replace(ALONE, overrides=("--run_dir=/shared/a/b",), run_dir="/shared/a/b")
    written = write_kubernetes(task, Kubernetes("i", "ck", mount="/shared/"))
    assert written.count("--run_dir") == 1
