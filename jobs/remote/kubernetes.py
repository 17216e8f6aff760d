"""Kubernetes manifests for a job: a RayJob of KubeRay with its configuration, and what it shares with other jobs.

Everything is a plain function from (configuration, settings) to the documents of the Kubernetes API as dictionaries.
What jobs share (storage, MLflow, PostgreSQL, network policies) is in `kubernetes_services.py`. Nothing here talks to a
cluster, and no secret passes through: the documents name Secrets that the user makes once.
"""

import dataclasses
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, TextIO

import yaml

from transloom.jobs.config.compose import to_dict, to_yaml
from transloom.jobs.config.schema import Config
from transloom.jobs.remote import kubernetes_services as services
from transloom.jobs.remote.kubernetes_services import (
    DATA,
    LABELS,
    POSTGRESQL,
    RAY_SECRET,
    container_security,
    pod_security,
)
from transloom.pipeline.errors import UserError
from transloom.pipeline.files import hash_of
from transloom.pipeline.secrets import secrets_in
from transloom.pipeline.storage.files import is_url

CONFIG_FOLDER, CONFIG_FILE = "/etc/transloom", "config.yaml"
HOME = "/home/transloom"  # as in deploy/Dockerfile
ENVIRONMENT_SECRET = "transloom-environment"  # optional; what the job needs of logins, such as HF_TOKEN
HEAD_CPUS, HEAD_MEMORY = 4, "16Gi"  # for the driver, which trains the tokenizer
LONGEST_NAME = 47  # of a RayJob; KubeRay adds to it
SECONDS_TO_START = 1800  # images with CUDA are large
SECONDS_TO_CHECKPOINT = 120  # between the signal that ends a job and the one that kills it
SECONDS_KEPT = 600  # how long the pods of a finished job can be looked into


@dataclass(frozen=True)
class KubernetesConfig:
    """What a cluster has to be told beside the configuration of the job.

    Attributes:
        image: made of deploy/Dockerfile, where the cluster's nodes can pull it.
        workers_per_pod: training workers that share a pod; as many as a node has GPUs lets them talk by NVLink.
        memory: of a worker's pod, as a Kubernetes quantity.
        volume: size of the volume that all pods share; its class must offer ReadWriteMany.
        storage_class: none for the cluster's default.

    Raises:
        ValueError: naming the setting.
    """

    image: str
    namespace: str = "transloom"
    workers_per_pod: int = 1
    memory: str = "16Gi"
    volume: str = "200Gi"
    storage_class: str | None = None

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[\w.:/@-]+", self.image):
            raise ValueError(f"image: is no image's name: {self.image!r}")
        for name in ("namespace", "storage_class"):
            value = getattr(self, name)
            if value is not None and not re.fullmatch(r"[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?", value):
                raise ValueError(f"{name}: is no name in Kubernetes: {value!r}")
        if self.workers_per_pod < 1:
            raise ValueError(f"workers_per_pod: must be at least 1, not {self.workers_per_pod}")
        for name in ("memory", "volume"):
            if not re.fullmatch(r"[1-9]\d*([KMGT]i|[kMGT])", getattr(self, name)):
                raise ValueError(f"{name}: must be a number with its unit, such as 16Gi, not {getattr(self, name)!r}")


KEYS = tuple(field.name for field in dataclasses.fields(KubernetesConfig))  # of the words of the command line


def kubernetes_config(values: Mapping[str, str]) -> KubernetesConfig:
    """The settings from the words of the command line, `KEYS` with their values.

    Raises:
        UserError: the image is missing, or a value is wrong.
    """
    if "image" not in values:
        raise UserError(
            "image: is missing. Build deploy/Dockerfile, push it where the cluster can pull it, and give "
            "image=<its name>; docs/kubernetes.md says how"
        )
    words: dict[str, Any] = dict(values)
    if "workers_per_pod" in words:
        if not words["workers_per_pod"].isdecimal():
            raise UserError(f"workers_per_pod: must be a whole number, not {words['workers_per_pod']!r}")
        words["workers_per_pod"] = int(words["workers_per_pod"])
    try:
        return KubernetesConfig(**words)
    except ValueError as error:
        raise UserError(str(error)) from error


def print_manifests(job: str, config: Config, settings: KubernetesConfig, out: TextIO) -> None:
    """Writes the manifests of `transloom <job>` as YAML, with what to do with them as comments at the top.

    Raises:
        UserError: the job can't run there as it is configured.
    """
    documents = manifests(job, config, settings)
    kubectl = f"kubectl --namespace {settings.namespace}"
    secrets = [(RAY_SECRET, "auth_token")]
    secrets += [(POSTGRESQL, "password")] if any(one["kind"] == "StatefulSet" for one in documents) else []
    once = [
        f"kubectl create namespace {settings.namespace}",
        f"kubectl label namespace {settings.namespace} pod-security.kubernetes.io/enforce=restricted",
        *(
            f"openssl rand -hex 32 | tr -d '\\n' | {kubectl} create secret generic {name} --from-file={key}=/dev/stdin"
            for name, key in secrets
        ),
    ]
    name = documents[-1]["metadata"]["name"]
    next_ = [
        "kubectl apply --filename=<this file>",
        f"{kubectl} get rayjob {name}",
        f"{kubectl} logs --follow job/{name}",
    ]
    print(f"# transloom {job} as a RayJob of KubeRay 1.6 or newer; docs/kubernetes.md explains it.", file=out)
    print("# Once in a namespace:", *(f"#   {line}" for line in once), "# Then:", sep="\n", file=out)
    print(*(f"#   {line}" for line in next_), sep="\n", file=out)
    yaml.dump_all(documents, out, _Dumper, sort_keys=False, explicit_start=True, width=120)


def manifests(job: str, config: Config, settings: KubernetesConfig) -> list[dict[str, Any]]:
    """The documents, in the order in which they are to be made; the RayJob is the last.

    Raises:
        UserError: the job can't run there as it is configured.
    """
    if config.cluster.num_workers % settings.workers_per_pod:
        raise UserError(
            f"workers_per_pod: {config.cluster.num_workers} workers (cluster.num_workers) can't be shared out to pods "
            f"of {settings.workers_per_pod}"
        )
    own_mlflow = config.tracking.enabled and config.tracking.uri is None
    there = _config_there(config, own_mlflow)
    documents = [services.outputs_claim(settings.volume, settings.storage_class)]
    documents += services.ray_network_policies(_needs_the_outside(config))
    if own_mlflow:
        documents += services.postgresql(settings.storage_class)
        documents += services.mlflow(settings.image, settings.namespace, settings.storage_class)
    name = _name(job, there, settings)
    documents += [_config_map(name, there), ray_job(name, job, there, settings)]
    for document in documents:
        document["metadata"]["namespace"] = settings.namespace
    return documents


def ray_job(name: str, job: str, config: Config, settings: KubernetesConfig) -> dict[str, Any]:
    """The RayJob. KubeRay makes its cluster, submits the job to it, and removes the cluster when the job is done."""
    cluster = config.cluster
    pods = cluster.num_workers // settings.workers_per_pod
    gpus = int(cluster.gpus_per_worker) * settings.workers_per_pod
    head = _container("ray-head", settings.image, HEAD_CPUS, HEAD_MEMORY)
    head["env"] += [{"name": "RAY_JOB_STOP_WAIT_TIME_S", "value": str(SECONDS_TO_CHECKPOINT)}]
    head["envFrom"] = [{"secretRef": {"name": ENVIRONMENT_SECRET, "optional": True}}]
    head["ports"] = [{"name": "gcs-server", "containerPort": 6379}, {"name": "dashboard", "containerPort": 8265}]
    head["volumeMounts"] += [{"name": "config", "mountPath": CONFIG_FOLDER, "readOnly": True}]
    cpus = math.ceil(cluster.cpus_per_worker * settings.workers_per_pod)
    worker = _container("ray-worker", settings.image, cpus, settings.memory, gpus)
    submitter = _container("submitter", settings.image, 1, "1Gi", with_data=False)
    config_volume = {"name": "config", "configMap": {"name": name}}
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": {"name": name, "labels": LABELS},
        "spec": {
            "entrypoint": f"transloom {job} resolved={CONFIG_FOLDER}/{CONFIG_FILE}",
            # A lost head loses the cluster: in a new one the same configuration goes on from the newest checkpoint.
            "backoffLimit": 2,
            "preRunningDeadlineSeconds": SECONDS_TO_START,
            "shutdownAfterJobFinishes": True,
            "ttlSecondsAfterFinished": SECONDS_KEPT,
            "submitterPodTemplate": _pod("submitter", submitter, {"restartPolicy": "Never"}, with_data=False),
            "rayClusterSpec": {
                "rayVersion": version("ray"),
                "authOptions": {"mode": "token", "secretName": RAY_SECRET},
                "headGroupSpec": {
                    # No task or worker is placed on the head: it has the driver, which must outlive them.
                    "rayStartParams": {"num-cpus": "0", "dashboard-host": "0.0.0.0"},
                    "template": _pod("ray", head, {}, config_volume),
                },
                "workerGroupSpecs": [
                    {
                        "groupName": "workers",
                        "replicas": pods,
                        "minReplicas": pods,
                        "maxReplicas": pods,
                        "rayStartParams": {},
                        "template": _pod("ray", worker, {}),
                    }
                ],
            },
        },
    }


def _container(name: str, image: str, cpus: int, memory: str, gpus: int = 0, with_data: bool = True) -> dict[str, Any]:
    resources = {"cpu": str(cpus), "memory": memory}
    if gpus:
        resources["nvidia.com/gpu"] = str(gpus)
    token = {"secretKeyRef": {"name": RAY_SECRET, "key": "auth_token"}}
    writable = [("tmp", "/tmp"), ("home", HOME)] + ([("data", DATA)] if with_data else [])
    return {
        "name": name,
        "image": image,
        # KubeRay sets these, too. A version that knows no authOptions would drop them silently, and start Ray open.
        "env": [
            {"name": "RAY_AUTH_MODE", "value": "token"},
            {"name": "RAY_AUTH_TOKEN", "valueFrom": token},
            {"name": "RAY_USAGE_STATS_ENABLED", "value": "0"},
        ],
        "resources": {"requests": resources, "limits": dict(resources)},
        "securityContext": container_security(),
        "volumeMounts": [{"name": volume, "mountPath": path} for volume, path in writable],
    }


def _pod(
    component: str, container: dict[str, Any], more: dict[str, Any], *volumes: dict[str, Any], with_data: bool = True
) -> dict[str, Any]:
    """A pod's template; its root is read-only, so what it writes goes to volumes."""
    claim = {"name": "data", "persistentVolumeClaim": {"claimName": services.OUTPUTS}}
    return {
        "metadata": {"labels": services.labels(component)},
        "spec": {
            "containers": [container],
            "volumes": [
                *({"name": name, "emptyDir": {}} for name in ("tmp", "home")),
                *([claim] if with_data else []),
                *volumes,
            ],
            "securityContext": pod_security(),
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "terminationGracePeriodSeconds": SECONDS_TO_CHECKPOINT,
            **more,
        },
    }


def _config_map(name: str, config: Config) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name, "labels": LABELS},
        "immutable": True,
        "data": {CONFIG_FILE: to_yaml(config)},
    }


def _config_there(config: Config, own_mlflow: bool) -> Config:
    """The configuration as it is for the pods.

    Raises:
        UserError: it has a path of this machine in it, or a password.
    """
    paths = dict(config.corpus.paths)
    if config.train.initial and config.train.initial.startswith("/"):  # else the name of a run there
        paths["train.initial"] = config.train.initial
    if config.tokenizer.path:
        paths["tokenizer.path"] = config.tokenizer.path
    for key, path in paths.items():
        if "://" not in path and not path.startswith(f"{DATA}/"):
            raise UserError(
                f"{key}: {path} is on this machine. Pods see the shared volume under {DATA}: copy the files there, "
                f"and give {key}={DATA}/…"
            )
    uri = config.tracking.uri
    for key, shown in secrets_in(to_dict(config)).items():
        raise UserError(
            f"{key}: the manifests would hold the password or token of {shown}. Leave it out of the address, and put "
            "the variables that log in (MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD for MLflow) into the "
            f"Secret {ENVIRONMENT_SECRET}"
        )
    if uri is not None and not uri.startswith("http"):
        raise UserError(
            f"tracking.uri: {uri} can't be reached from pods; give the address of an MLflow server, or leave it out "
            "for one in the cluster"
        )
    tracking = dataclasses.replace(config.tracking, uri=services.MLFLOW_URI) if own_mlflow else config.tracking
    cluster = dataclasses.replace(config.cluster, address="auto")
    return dataclasses.replace(config, cluster=cluster, tracking=tracking, output_dir=f"{DATA}/outputs")


def _needs_the_outside(config: Config) -> bool:
    """Whether the job reads from the hub or URLs, reports to a server of the user's own, or copies to a storage."""
    tracking = config.tracking
    reads_urls = any(map(is_url, [config.storage, *config.corpus.paths.values()]))
    return config.corpus.is_from_hub or reads_urls or (tracking.enabled and tracking.uri is not None)


def _name(job: str, config: Config, settings: KubernetesConfig) -> str:
    """The RayJob's name: another configuration makes another one, the same one is not submitted twice."""
    readable = re.sub(r"[^a-z0-9]+", "-", f"{job}-{config.name or config.corpus.name}".lower()).strip("-")
    end = hash_of({"job": job, "config": to_yaml(config), "settings": settings})[:8]
    return f"{readable[: LONGEST_NAME - len(end) - 1].rstrip('-')}-{end}"


class _Dumper(yaml.SafeDumper):
    """YAML for people: files in it line by line, and no aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _string(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _string)
