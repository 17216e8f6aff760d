"""What the jobs of a namespace share: the volume, MLflow with PostgreSQL, and who may talk to whom.

The documents are the same for every job of a namespace, so applying them again changes nothing.
"""

from typing import Any

from pipeline.tracking.mlflow_store import MLFLOW_ENVIRONMENT

LABELS = {"app.kubernetes.io/part-of": "transloom"}
OUTPUTS, MLFLOW, POSTGRESQL = "transloom-outputs", "transloom-mlflow", "transloom-postgresql"
RAY_SECRET = "transloom-ray"  # with the key auth_token, as KubeRay wants it; POSTGRESQL's has the key password
DATA = "/data"  # where pods see the shared volume
MLFLOW_PORT, POSTGRESQL_PORT, DASHBOARD_PORT = 5000, 5432, 8265
MLFLOW_URI = f"http://{MLFLOW}:{MLFLOW_PORT}"
POSTGRESQL_IMAGE = "postgres:17.6"
POSTGRESQL_USER_ID = 999  # of the user postgres in that image
DATABASE = "mlflow"  # the database, and its user
USER_ID = 1000  # of the user in deploy/Dockerfile


def labels(component: str) -> dict[str, str]:
    return LABELS | {"app.kubernetes.io/component": component}


def pod_security(user: int = USER_ID) -> dict[str, Any]:
    """With `container_security`, what Pod Security's restricted profile asks for, and a read-only root besides."""
    return {
        "runAsNonRoot": True,
        "runAsUser": user,
        "runAsGroup": user,
        "fsGroup": user,
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
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": OUTPUTS, "labels": LABELS},
        "spec": _claim("ReadWriteMany", storage, storage_class),
    }


def mlflow(image: str, namespace: str, storage_class: str | None) -> list[dict[str, Any]]:
    """An MLflow server on the database of `postgresql`, with a volume for its artifacts."""
    # Its name as pods say it, and what `kubectl port-forward` makes of it. Others are refused: a web page could reach
    # the server by DNS rebinding.
    hosts = [f"{host}:{MLFLOW_PORT}" for host in (MLFLOW, f"{MLFLOW}.{namespace}", f"{MLFLOW}.{namespace}.svc")]
    hosts += ["localhost:*", "127.0.0.1:*"]
    environment = {
        "MLFLOW_BACKEND_STORE_URI": f"postgresql+psycopg://{DATABASE}@{POSTGRESQL}:{POSTGRESQL_PORT}/{DATABASE}",
        "MLFLOW_SERVER_ALLOWED_HOSTS": ",".join(hosts),
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        **{
            name: MLFLOW_ENVIRONMENT[name]
            for name in ("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "MLFLOW_DISABLE_TELEMETRY")
        },
    }
    password = {"secretKeyRef": {"name": POSTGRESQL, "key": "password"}}
    health = {"httpGet": {"path": "/health", "port": MLFLOW_PORT}}
    artifacts = "/mlartifacts"
    server = f"mlflow server --host 0.0.0.0 --port {MLFLOW_PORT} --workers 2 --artifacts-destination file://{artifacts}"
    container = {
        "name": "mlflow",
        "image": image,
        "command": server.split(),
        "env": [
            *({"name": name, "value": value} for name, value in environment.items()),
            {"name": "PGPASSWORD", "valueFrom": password},  # libpq's: so the address needs none
        ],
        "ports": [{"name": "http", "containerPort": MLFLOW_PORT}],
        "readinessProbe": health | {"periodSeconds": 10},
        # The first start makes the database's tables.
        "livenessProbe": health | {"periodSeconds": 30, "initialDelaySeconds": 120},
        "resources": _resources("1", "3Gi"),
        "securityContext": container_security(),
        "volumeMounts": [{"name": "artifacts", "mountPath": artifacts}, {"name": "tmp", "mountPath": "/tmp"}],
    }
    volumes = [
        {"name": "artifacts", "persistentVolumeClaim": {"claimName": MLFLOW}},
        {"name": "tmp", "emptyDir": {}},
    ]
    return [
        {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": {"name": MLFLOW, "labels": labels("mlflow")},
            "spec": _claim("ReadWriteOnce", "50Gi", storage_class),
        },
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": MLFLOW, "labels": labels("mlflow")},
            "spec": {
                "replicas": 1,
                "strategy": {"type": "Recreate"},  # the volume is mounted by one pod at a time
                "selector": {"matchLabels": labels("mlflow")},
                "template": _template("mlflow", container, volumes, USER_ID),
            },
        },
        _service(MLFLOW, "mlflow", MLFLOW_PORT),
        _network_policy(
            MLFLOW,
            "mlflow",
            ingress=[_from("ray", MLFLOW_PORT)],
            egress=[_dns(), _to("postgresql", POSTGRESQL_PORT)],
        ),
    ]


def postgresql(storage_class: str | None) -> list[dict[str, Any]]:
    """One PostgreSQL with a volume of its own, for MLflow alone."""
    data, password = "/var/lib/postgresql/data", "/run/secrets/postgresql"
    environment = {
        "POSTGRES_USER": DATABASE,
        "POSTGRES_DB": DATABASE,
        "POSTGRES_PASSWORD_FILE": f"{password}/password",
        "POSTGRES_INITDB_ARGS": "--auth=scram-sha-256",
        "PGDATA": f"{data}/pgdata",  # a volume's root may have a lost+found, which initdb refuses
    }
    ready = {"exec": {"command": ["pg_isready", "--username", DATABASE, "--dbname", DATABASE]}}
    container = {
        "name": "postgresql",
        "image": POSTGRESQL_IMAGE,
        "env": [{"name": name, "value": value} for name, value in environment.items()],
        "ports": [{"name": "postgresql", "containerPort": POSTGRESQL_PORT}],
        "readinessProbe": ready | {"periodSeconds": 10},
        "livenessProbe": ready | {"periodSeconds": 30, "initialDelaySeconds": 120},
        "resources": _resources("1", "1Gi"),
        "securityContext": container_security(),
        "volumeMounts": [
            {"name": "data", "mountPath": data},
            {"name": "password", "mountPath": password, "readOnly": True},
            {"name": "tmp", "mountPath": "/tmp"},
            {"name": "run", "mountPath": "/var/run/postgresql"},
        ],
    }
    volumes = [
        {"name": "password", "secret": {"secretName": POSTGRESQL, "defaultMode": 0o440}},
        *({"name": name, "emptyDir": {}} for name in ("tmp", "run")),
    ]
    return [
        {
            "apiVersion": "apps/v1",
            "kind": "StatefulSet",
            "metadata": {"name": POSTGRESQL, "labels": labels("postgresql")},
            "spec": {
                "replicas": 1,
                "serviceName": POSTGRESQL,
                "selector": {"matchLabels": labels("postgresql")},
                "template": _template("postgresql", container, volumes, POSTGRESQL_USER_ID),
                "volumeClaimTemplates": [
                    {"metadata": {"name": "data"}, "spec": _claim("ReadWriteOnce", "20Gi", storage_class)}
                ],
            },
        },
        _service(POSTGRESQL, "postgresql", POSTGRESQL_PORT),
        _network_policy(POSTGRESQL, "postgresql", ingress=[_from("mlflow", POSTGRESQL_PORT)], egress=[]),
    ]


def ray_network_policies(needs_the_outside: bool) -> list[dict[str, Any]]:
    """Ray's pods talk to each other and to MLflow, and the submitter and KubeRay's operator to the head's dashboard.

    Args:
        needs_the_outside: whether jobs download a corpus or report to a server elsewhere; else nothing leaves.
    """
    operator = {
        "namespaceSelector": {},
        "podSelector": {"matchLabels": {"app.kubernetes.io/name": "kuberay-operator"}},
    }
    dashboard = [{"port": DASHBOARD_PORT, "protocol": "TCP"}]
    ingress = [_from("ray"), _from("submitter", DASHBOARD_PORT), {"from": [operator], "ports": dashboard}]
    egress = [{}] if needs_the_outside else [_dns(), _to("ray"), _to("mlflow", MLFLOW_PORT)]
    return [
        _network_policy("transloom-ray", "ray", ingress, egress),
        _network_policy("transloom-submitter", "submitter", [], [_dns(), _to("ray", DASHBOARD_PORT)]),
    ]


def _network_policy(
    name: str, component: str, ingress: list[dict[str, Any]], egress: list[dict[str, Any]]
) -> dict[str, Any]:
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": name, "labels": labels(component)},
        "spec": {
            "podSelector": {"matchLabels": labels(component)},
            "policyTypes": ["Ingress", "Egress"],
            "ingress": ingress,
            "egress": egress,
        },
    }


def _from(component: str, port: int | None = None) -> dict[str, Any]:
    return _peer("from", component, port)


def _to(component: str, port: int | None = None) -> dict[str, Any]:
    return _peer("to", component, port)


def _peer(direction: str, component: str, port: int | None) -> dict[str, Any]:
    ports = {"ports": [{"port": port, "protocol": "TCP"}]} if port else {}
    return {direction: [{"podSelector": {"matchLabels": labels(component)}}], **ports}


def _dns() -> dict[str, Any]:
    # To anywhere: where a cluster's DNS listens differs (pods, or an address of each node).
    return {"ports": [{"port": 53, "protocol": protocol} for protocol in ("UDP", "TCP")]}


def _service(name: str, component: str, port: int) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "labels": labels(component)},
        "spec": {"selector": labels(component), "ports": [{"name": component, "port": port, "targetPort": port}]},
    }


def _template(component: str, container: dict[str, Any], volumes: list[dict[str, Any]], user: int) -> dict[str, Any]:
    return {
        "metadata": {"labels": labels(component)},
        "spec": {
            "containers": [container],
            "volumes": volumes,
            "securityContext": pod_security(user),
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
        },
    }


def _claim(mode: str, storage: str, storage_class: str | None) -> dict[str, Any]:
    named = {"storageClassName": storage_class} if storage_class else {}
    return {"accessModes": [mode], "resources": {"requests": {"storage": storage}}, **named}


def _resources(cpu: str, memory: str) -> dict[str, Any]:
    each = {"cpu": cpu, "memory": memory}
    return {"requests": each, "limits": dict(each)}
