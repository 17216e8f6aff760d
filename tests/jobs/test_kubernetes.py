"""The manifests: KubeRay's own schemas take them, Pod Security's restricted profile does, and no secret is in them."""

import copy
import io
import os
import re
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from command import ROOT
from crd import document_schemas, errors, job_schema
from setuptools import find_namespace_packages

from transloom.jobs.__main__ import main
from transloom.jobs.config.compose import load_config, read_config
from transloom.jobs.remote import kubernetes_services as services
from transloom.jobs.remote.kubernetes import KEYS, KubernetesConfig, kubernetes_config, manifests, print_manifests
from transloom.pipeline.errors import UserError
from transloom.pipeline.files import hash_of

SETTINGS = KubernetesConfig(image="registry.example/transloom:1")
GPUS = ("experiment=paper_base_en_de", "cluster=gpu", "cluster.num_workers=8")
Document = dict[str, Any]


@pytest.fixture(scope="module")
def schemas() -> dict[str, Any]:
    """The schema of each kind: TRANSLOOM_SCHEMAS, else ../shared/schemas beside the checkout."""
    beside = Path(__file__).resolve().parents[3] / "shared" / "schemas"
    folder = Path(os.environ.get("TRANSLOOM_SCHEMAS") or beside)
    if not (folder / "ray.io_rayjobs.yaml.gz").exists():
        pytest.skip(f"KubeRay's definitions are not in {folder}; set TRANSLOOM_SCHEMAS to a folder that has them")
    return document_schemas(job_schema(folder))


def made(*words: str, job: str = "run", settings: KubernetesConfig = SETTINGS) -> list[Document]:
    return manifests(job, load_config(words), settings)


def wrong(schemas: dict[str, Any], document: Document) -> list[str]:
    """What an API server would refuse of a document."""
    body = document.get("spec")
    if document["kind"] == "ConfigMap":
        body = {key: value for key, value in document.items() if key not in ("apiVersion", "kind", "metadata")}
    return errors(schemas[document["kind"]], body)


def of_kind(documents: list[Document], kind: str) -> list[Document]:
    return [document for document in documents if document["kind"] == kind]


def pods(documents: list[Document]) -> Iterator[Document]:
    """All pod templates."""
    for document in documents:
        spec = document.get("spec", {})
        if document["kind"] == "RayJob":
            cluster = spec["rayClusterSpec"]
            yield spec["submitterPodTemplate"]
            yield cluster["headGroupSpec"]["template"]
            yield from (group["template"] for group in cluster["workerGroupSpecs"])
        elif "template" in spec:
            yield spec["template"]


@pytest.mark.parametrize("words", [(), GPUS, ("tracking=off",), ("tracking.uri=https://mlflow.example",)])
def test_kuberays_definitions_take_every_document_with_every_field(schemas, words):
    documents = made(*words)
    assert {name: wrong(schemas, one) for one in documents if wrong(schemas, one) for name in [one["kind"]]} == {}
    assert {one["metadata"]["namespace"] for one in documents} == {"transloom"}
    names = [(one["kind"], one["metadata"]["name"]) for one in documents]
    assert len(set(names)) == len(names)


def _set(path: str, value: Any) -> Callable[[Document], None]:
    def change(document: Document) -> None:
        *parents, last = path.split(".")
        for name in parents:
            document = document[int(name)] if name.isdecimal() else document[name]
        document[last] = value

    return change


def _twice(document: Document) -> None:
    env = document["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]["env"]
    env.append(dict(env[0]))


HEAD = "spec.rayClusterSpec.headGroupSpec.template.spec"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_set("spec.shutdownAfterJobFinish", True), "'shutdownAfterJobFinish' was unexpected"),
        (_set(f"{HEAD}.securitycontext", {}), "'securitycontext' was unexpected"),
        (_set(f"{HEAD}.containers.0.securityContext.readOnly", True), "'readOnly' was unexpected"),
        (_set("spec.rayClusterSpec.authOptions.mode", "tokens"), "'tokens' is not one of"),
        (_set("spec.rayClusterSpec.workerGroupSpecs.0.replicas", "2"), "'2' is not of type 'integer'"),
        (_set("spec.rayClusterSpec.headGroupSpec.rayStartParams", {"num-cpus": 0}), "0 is not of type 'string'"),
        (_set(f"{HEAD}.containers", [{"image": "x"}]), "'name' is a required property"),
        (_twice, "name must be unique"),
    ],
)
def test_a_broken_manifest_is_refused(schemas, change, message):
    job = copy.deepcopy(made()[-1])
    change(job)
    assert any(message in one for one in wrong(schemas, job)), wrong(schemas, job)


@pytest.mark.parametrize("kind", ["Deployment", "StatefulSet", "Service", "NetworkPolicy", "PersistentVolumeClaim"])
def test_an_unknown_field_of_any_kind_is_refused(schemas, kind):
    document = copy.deepcopy(of_kind(made(), kind)[0])
    document["spec"]["unknown"] = 1
    assert any("'unknown' was unexpected" in one for one in wrong(schemas, document))


@pytest.mark.parametrize("words", [(), GPUS])
def test_every_pod_is_as_the_restricted_profile_of_pod_security_wants_it(words):
    found = list(pods(made(*words)))
    assert len(found) == 5  # submitter, head, workers, MLflow, PostgreSQL
    for pod in found:
        spec = pod["spec"]
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec)
        assert spec["automountServiceAccountToken"] is False
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["runAsUser"] > 0
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        allowed = {"configMap", "emptyDir", "secret", "persistentVolumeClaim"}
        volumes = {volume["name"]: set(volume) - {"name"} for volume in spec["volumes"]}
        assert all(kinds <= allowed for kinds in volumes.values())
        for container in spec["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert container["resources"]["requests"] == container["resources"]["limits"]
            assert {"cpu", "memory"} <= set(container["resources"]["limits"])
            assert not any("hostPort" in port for port in container.get("ports", []))
            own = {mount["name"] for mount in container["volumeMounts"]}
            assert own <= set(volumes) | {"data"}, "data may be a StatefulSet's own claim"


def test_ray_asks_for_a_token_that_is_nowhere_in_the_manifests():
    job = made()[-1]
    assert job["spec"]["rayClusterSpec"]["authOptions"] == {"mode": "token", "secretName": "transloom-ray"}
    for pod in pods([job]):
        env = {one["name"]: one for one in pod["spec"]["containers"][0]["env"]}
        assert env["RAY_AUTH_MODE"]["value"] == "token"
        assert env["RAY_AUTH_TOKEN"]["valueFrom"] == {"secretKeyRef": {"name": "transloom-ray", "key": "auth_token"}}


# SHA-256 of the canonical JSON, as it was when Python made the documents. What changes in manifests/ on purpose changes
# these, too.
PLAIN = ("registry.example/transloom:1", "transloom", "200Gi", None, True, False)
OWN = ("r.example/t:2", "team-a", "5Ti", "fast", True, True)
SNAPSHOTS = {
    PLAIN: "29f8cead053e2cc1c8a2486928b16e2cb5b8172068d7b2d3ff0d1d4198eda724",
    OWN: "5e3feaeb66627493adb7156431648b125185f2b55930e4c69323e114b83d04e1",
    (*PLAIN[:4], False, False): "104fe99297b6f3bf88d7ec2f8b468a27c5a9559ea7c0222f1aceb1cb4b6708b7",
    (*PLAIN[:2], "1Gi", "nfs", False, True): "7d04c742d2531f576efc43f1e350f6e99cf8cfe6061f587bc88d782a0afc6616",
}


@pytest.mark.parametrize("settings", SNAPSHOTS)
def test_what_jobs_share_is_as_it_was(settings):
    image, namespace, volume, storage_class, with_mlflow, needs_the_outside = settings
    documents = [services.outputs_claim(volume, storage_class), *services.ray_network_policies(needs_the_outside)]
    if with_mlflow:
        documents += services.postgresql(storage_class) + services.mlflow(image, namespace, storage_class)
    assert hash_of(documents) == SNAPSHOTS[settings]


def test_operators_find_the_manifests_and_installations_have_them():
    files = sorted(file.name for file in services.MANIFESTS.iterdir())
    assert files == ["mlflow.yaml", "network.yaml", "outputs.yaml", "postgresql.yaml"]
    assert (ROOT / "deploy" / "kubernetes").resolve() == services.MANIFESTS.resolve()
    with open(ROOT / "pyproject.toml", "rb") as file:
        setuptools = tomllib.load(file)["tool"]["setuptools"]
    packages = find_namespace_packages(str(ROOT), **setuptools["packages"]["find"])
    assert "transloom.jobs.remote.manifests" in packages and "*.yaml" in setuptools["package-data"]["*"]


def test_no_secret_is_in_the_manifests():
    documents = made(*GPUS)
    assert not of_kind(documents, "Secret")
    for pod in pods(documents):
        for one in pod["spec"]["containers"][0].get("env", []):
            if re.search("PASSWORD|TOKEN|SECRET|KEY", one["name"]) and not one["name"].endswith("_FILE"):
                assert "value" not in one, one
    with pytest.raises(UserError, match="password") as refused:
        made("tracking.uri=https://user:c4n4ry@mlflow.example")
    assert "c4n4ry" not in str(refused.value)


def test_workers_are_shared_out_to_pods_with_what_they_need():
    settings = KubernetesConfig(image="x", workers_per_pod=4, memory="400Gi")
    (group,) = made(*GPUS, "cluster.cpus_per_worker=1.5", settings=settings)[-1]["spec"]["rayClusterSpec"][
        "workerGroupSpecs"
    ]
    assert (group["replicas"], group["minReplicas"], group["maxReplicas"]) == (2, 2, 2)
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert limits == {"cpu": "6", "memory": "400Gi", "nvidia.com/gpu": "4"}
    with pytest.raises(UserError, match="8 workers"):
        made(*GPUS, settings=KubernetesConfig(image="x", workers_per_pod=3))
    cpu = made()[-1]["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["template"]["spec"]["containers"][0]
    assert "nvidia.com/gpu" not in cpu["resources"]["limits"]


def test_the_job_reads_its_whole_configuration_from_the_mounted_file(tmp_path):
    words = ("model.dropout=0.2", "name=My_Run.1", "corpus=multi30k_en_de", "corpus.path=/data/corpora/mine")
    documents = made(*words, job="train")
    (config_map,) = of_kind(documents, "ConfigMap")
    job = documents[-1]
    head = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    (volume,) = (one for one in head["volumes"] if one["name"] == "config")
    assert volume["configMap"]["name"] == config_map["metadata"]["name"]
    (mount,) = (one for one in head["containers"][0]["volumeMounts"] if one["name"] == "config")
    (file,) = config_map["data"]
    assert job["spec"]["entrypoint"] == f"transloom train resolved={mount['mountPath']}/{file}"
    (tmp_path / file).write_text(config_map["data"][file])
    config = read_config(tmp_path / file)
    assert (config.model.dropout, config.name, config.corpus.path) == (0.2, "My_Run.1", "/data/corpora/mine")
    assert (config.cluster.address, config.output_dir) == ("auto", "/data/outputs")
    assert config.tracking.uri == "http://transloom-mlflow:5000"


def test_another_configuration_is_another_job_and_the_same_one_the_same():
    assert made()[-1] == made()[-1]
    names = {made(*words, job=job)[-1]["metadata"]["name"] for words in ((), ("seed=2",)) for job in ("run", "train")}
    names.add(made(f"name={'Long_Name.' * 9}")[-1]["metadata"]["name"])
    assert len(names) == 5
    for name in names:
        assert len(name) <= 47
        assert re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("corpus.path=/home/me/corpus",), "corpus.path: /home/me/corpus is on this machine.*corpus.path=/data/"),
        (("corpus=text", "corpus.train.source=/a.en", "corpus.train.target=/a.de"), "corpus.train.source: /a.en"),
        (("tracking.uri=sqlite:////home/me/mlflow.db",), "tracking.uri: .* can't be reached from pods"),
    ],
)
def test_what_pods_can_not_see_is_refused(words, message):
    with pytest.raises(UserError, match=message):
        made(*words)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "image: is missing"),
        ({"image": "a b"}, "image: is no image's name"),
        ({"image": "x", "namespace": "My_Space"}, "namespace: is no name"),
        ({"image": "x", "workers_per_pod": "0"}, "workers_per_pod: must be at least 1"),
        ({"image": "x", "workers_per_pod": "two"}, "workers_per_pod: must be a whole number"),
        ({"image": "x", "memory": "16"}, "memory: must be a number with its unit"),
    ],
)
def test_wrong_settings_are_refused(values, message):
    with pytest.raises(UserError, match=message):
        kubernetes_config(values)


def test_settings_are_words():
    values = {"image": "x", "workers_per_pod": "8", "storage_class": "nfs", "volume": "1Ti"}
    assert set(values) < set(KEYS)
    settings = kubernetes_config(values)
    assert (settings.workers_per_pod, settings.storage_class, settings.volume) == (8, "nfs", "1Ti")
    claims = of_kind(made(*GPUS, settings=settings), "PersistentVolumeClaim")
    assert {claim["spec"]["storageClassName"] for claim in claims} == {"nfs"}


def _matches(selector: Document, labels: Document) -> bool:
    return selector["matchLabels"].items() <= labels.items()


def _allowed(documents: list[Document], source: str, target: str, port: int) -> bool:
    """Whether the network policies let a pod of one component open a connection to another's port."""

    def ports(rule: Document) -> bool:
        return "ports" not in rule or any(one["port"] == port for one in rule["ports"])

    def peers(rule: Document, direction: str, labels: Document) -> bool:
        return direction not in rule or any(_matches(one["podSelector"], labels) for one in rule[direction])

    labels = {
        name: pod["metadata"]["labels"] for pod in pods(documents) for name in [pod["metadata"]["labels"][COMPONENT]]
    }
    policies = [one["spec"] for one in of_kind(documents, "NetworkPolicy")]
    leaving = [one for one in policies if _matches(one["podSelector"], labels[source])]
    arriving = [one for one in policies if _matches(one["podSelector"], labels[target])]
    assert leaving and arriving, "a pod without a policy is open to all"
    return any(ports(r) and peers(r, "to", labels[target]) for one in leaving for r in one["egress"]) and any(
        ports(r) and peers(r, "from", labels[source]) for one in arriving for r in one["ingress"]
    )


COMPONENT = "app.kubernetes.io/component"


@pytest.mark.parametrize("words", [(), ("experiment=paper_base_en_de",), ("storage=s3://bucket/x",)])
def test_pods_reach_what_they_need_and_nothing_else(words):
    documents = made(*words)
    ways = {("ray", "ray", 6379), ("ray", "mlflow", 5000), ("submitter", "ray", 8265), ("mlflow", "postgresql", 5432)}
    components = ("ray", "submitter", "mlflow", "postgresql")
    asked = {(a, b, port) for a in components for b in components for port in (5000, 5432, 6379, 8265)}
    found = {way for way in asked if _allowed(documents, *way)}
    assert found == ways | {("ray", "ray", port) for port in (5000, 5432, 8265)}
    ray = next(one for one in of_kind(documents, "NetworkPolicy") if one["metadata"]["name"] == "transloom-ray")
    assert ({} in ray["spec"]["egress"]) == bool(words), "only what has its data elsewhere may reach the internet"


def test_services_lead_to_the_pods_that_listen():
    documents = made()
    for service in of_kind(documents, "Service"):
        (port,) = service["spec"]["ports"]
        (pod,) = (
            one for one in pods(documents) if service["spec"]["selector"].items() <= one["metadata"]["labels"].items()
        )
        assert port["targetPort"] in [one["containerPort"] for one in pod["spec"]["containers"][0]["ports"]]


def test_without_tracking_or_with_a_server_of_ones_own_there_is_no_mlflow():
    for word in ("tracking=off", "tracking.uri=https://mlflow.example"):
        assert not of_kind(made(word), "Deployment") + of_kind(made(word), "StatefulSet")


def test_what_is_printed_is_the_manifests_with_what_to_do_first():
    out = io.StringIO()
    config = load_config(GPUS)
    print_manifests("run", config, SETTINGS, out)
    text = out.getvalue()
    assert list(yaml.safe_load_all(text)) == manifests("run", config, SETTINGS)
    assert "&id" not in text
    comments = "".join(line for line in text.splitlines(keepends=True) if line.startswith("#"))
    assert text.startswith(comments)
    for secret in ("transloom-ray --from-file=auth_token", "transloom-postgresql --from-file=password"):
        assert f"kubectl --namespace transloom create secret generic {secret}=/dev/stdin" in comments
    quiet = io.StringIO()
    print_manifests("run", load_config(("tracking=off",)), SETTINGS, quiet)
    assert "postgresql" not in quiet.getvalue()


def test_submit_prints_the_manifests(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["submit", "run", "to=kubernetes", "image=registry.example/transloom:1", "namespace=team", "tracking=off"]
    assert main(words) == 2
    assert "--dry-run" in capsys.readouterr().err
    assert main([*words, "--dry-run", "experiment=demo", "cluster.num_workers=2"]) == 0
    documents = list(yaml.safe_load_all(capsys.readouterr().out))
    assert documents[-1]["kind"] == "RayJob" and documents[-1]["metadata"]["namespace"] == "team"
    assert documents[-1]["spec"]["entrypoint"].startswith("transloom run resolved=")
