"""What looks like a secret is not written to a job file, and what does not is."""

import pytest

from seektune.launch.job_spec import Environment, JobSpec
from seektune.launch.kubernetes import Kubernetes, write_kubernetes
from seektune.launch.slurm import Slurm, write_slurm

DIGITS = "0123456789abcdefABCDEF"
SECRETS = [
    "HF_TOKEN=x",
    "hf_token=x",
    "AWS_ACCESS_KEY_ID=x",
    "AWS_SECRET_ACCESS_KEY=x",
    "OPENAI_APIKEY=x",
    "WANDB_API_KEY=x",
    "GH_PAT=x",
    "PGPASSWORD=x",
    "MYSQL_PWD=x",
    "DB_PASS=x",
    "AZURE_CREDENTIALS=x",
    "SECRET=x",
    "DATABASE_URL=postgres://u:pw@h/d",
    "PIP_INDEX_URL=https://:pw@h/simple",
    f"A=hf_{DIGITS}",
    f"A=Bearer hf_{DIGITS}",
    f"A=ghp_{DIGITS}",
    f"A=github_pat_{DIGITS}",
    f"A=sk-{DIGITS}",
    f"A=sk-proj-{DIGITS}",
    "A=AKIAIOSFODNN7EXAMPLE",
    "A=https://host/rows?token=x1",
    "A=https://host/rows?a=1&X-Amz-Signature=x1",
    "A=https://host/rows?sv=1&sig=x1",
    "A=-----BEGIN OPENSSH PRIVATE KEY-----",
]
HARMLESS = [
    "TOKENIZERS_PARALLELISM=false",
    "MAX_TOKENS=4096",
    "HF_HUB_DISABLE_IMPLICIT_TOKEN=1",
    "HF_TOKEN_PATH=/home/me/token",
    "SSH_KEY_FILE=x",
    "GOOGLE_APPLICATION_CREDENTIALS=/keys/project.json",
    "PUBLIC_KEY=x",
    "MONKEY=x",
    "KEYBOARD=x",
    "PATH=/usr/bin",
    "PWD=/work",
    "COMPASS=x",
    "NCCL_DEBUG=INFO",
    "HF_HOME=/mnt/hf_cache_for_all_people",
    "A=https://host:8080/x@y",
    "A=ssh://git@host/repository",
    "A=hf_transfer",
    "A=disk-0123456789abcdef0123",
    "A=sk-learn",
    "A=task-description-of-no-number",
    "A=https://host/rows?page=2",
]


@pytest.mark.parametrize("word", SECRETS)
def test_a_secret_is_refused_without_being_shown(word: str) -> None:
    name, _, value = word.partition("=")
    with pytest.raises(
        ValueError, match=f"--env {name}=... looks like a secret.*pass it by name: --env {name}"
    ) as caught:
        Environment.of([word])
    assert value not in str(caught.value).replace(name, "").split()


@pytest.mark.parametrize("word", HARMLESS)
def test_what_is_harmless_is_written(word: str) -> None:
    assert Environment.of([word]).values == (tuple(word.split("=", 1)),)


@pytest.mark.parametrize("value", ["https://user:token@host/x", f"hf_{DIGITS}"])
def test_overrides_and_options_are_looked_at_too(value: str) -> None:
    with pytest.raises(ValueError, match=r"--model\.weights looks like a secret") as caught:
        JobSpec("r.yaml", (f"--model.weights={value}",), 1, 1, "m")
    assert value not in str(caught.value)
    spec = JobSpec("r.yaml", (), 1, 1, "m")
    with pytest.raises(ValueError, match="--container looks like a secret"):
        write_slurm(spec, Slurm(container=f"docker://{value.removeprefix('https://')}"))
    with pytest.raises(ValueError, match="--image looks like a secret"):
        write_kubernetes(spec, Kubernetes(f"oci://{value.removeprefix('https://')}", "claim"))
