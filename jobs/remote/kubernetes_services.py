"""What the jobs of a namespace share: the volume, MLflow with PostgreSQL, and who may talk to whom.

The documents are those of manifests/, which deploy/kubernetes leads to, with what differs between clusters filled in.
They are the same for every job of a namespace, so applying them again changes nothing.
"""

from pathlib import Path
from typing import Any

import yaml

MANIFESTS = Path(__file__).with_name("manifests")
LABELS = {"app.kubernetes.io/part-of": "transloom"}
OUTPUTS, POSTGRESQL = "transloom-outputs", "transloom-postgresql"
RAY_SECRET = "transloom-ray"  # with the key auth_token, as KubeRay wants it; POSTGRESQL's has the key password
DATA = "/data"  # where pods see the shared volume
MLFLOW_URI = "http://transloom-mlflow:5000"
USER_ID = 1000  # of the user in deploy/Dockerfile


def labels(component: str) -> dict[str, str]:
    return LABELS | {"app.kubernetes.io/component": component}


def pod_security() -> dict[str, Any]:
    """With `container_security`, what Pod Security's restricted profile asks for, and a read-only root besides."""
    return {
        "runAsNonRoot": True,
        "runAsUser": USER_ID,
        "runAsGroup": USER_ID,
        "fsGroup": USER_ID,
        "fsGroupChangePolicy": "OnRootMismatch",
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def container_security() -> dict[str, Any]:
    return {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


def outputs_claim(storage: str, storage_class: str | None) -> dict[str, Any]:
    """The claim of the volume that has corpora and outputs."""
    (claim,) = _read("outputs")
    claim["spec"]["resources"]["requests"]["storage"] = storage
    _set_class(claim, storage_class)
    return claim


def mlflow(image: str, namespace: str, storage_class: str | None) -> list[dict[str, Any]]:
    """An MLflow server on the database of `postgresql`, with a volume for its artifacts."""
    claim, deployment, service, policy = _read("mlflow")
    _set_class(claim, storage_class)
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    container["image"] = image
    (hosts,) = (one for one in container["env"] if one["name"] == "MLFLOW_SERVER_ALLOWED_HOSTS")
    hosts["value"] = hosts["value"].replace("transloom-mlflow.transloom", f"transloom-mlflow.{namespace}")
    return [claim, deployment, service, policy]


def postgresql(storage_class: str | None) -> list[dict[str, Any]]:
    """One PostgreSQL with a volume of its own, for MLflow alone."""
    database, service, policy = _read("postgresql")
    for claim in database["spec"]["volumeClaimTemplates"]:
        _set_class(claim, storage_class)
    return [database, service, policy]


def ray_network_policies(needs_the_outside: bool) -> list[dict[str, Any]]:
    """Ray's pods talk to each other and to MLflow, and the submitter and KubeRay's operator to the head's dashboard.

    Args:
        needs_the_outside: whether jobs download a corpus or report to a server elsewhere; else nothing leaves.
    """
    ray, submitter = _read("network")
    if needs_the_outside:
        ray["spec"]["egress"] = [{}]
    return [ray, submitter]


def _read(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((MANIFESTS / f"{name}.yaml").read_bytes()))


def _set_class(claim: dict[str, Any], storage_class: str | None) -> None:
    if storage_class:
        claim["spec"]["storageClassName"] = storage_class
