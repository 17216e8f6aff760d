"""Submit: compose a job's configuration here, refuse mistakes here, and hand the job to a Ray cluster."""

import json
import re
import secrets
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

from jobs.cli import JOBS, configuration, sort_words
from jobs.clusters import Cluster, choose_cluster
from pipeline.errors import UserError
from pipeline.untrusted import parse_yaml

if TYPE_CHECKING:
    from jobs.client import Client
    from jobs.config import Config
    from jobs.sweep_settings import Origin

SUBMITTABLE = ("run", "prepare", "train", "evaluate", "sweep")
STOP_SECONDS = 600  # after which Ray kills a job that is to stop: time for a step, a checkpoint and MLflow


def main(argv: list[str]) -> int:
    words, own, settings = sort_words(argv, own=("to",))
    if own.get("to") == "kubernetes":
        return _print_manifests(argv)
    job = _job_of(words)
    cluster = choose_cluster(own.get("to"))
    settings = with_cluster_settings(settings, cluster)
    if job == "sweep":
        from jobs.sweep_settings import refuse_impossible, sweep_settings

        config, origin = sweep_settings(settings)
        refuse_impossible(config)
        return submit(job, for_cluster(config, cluster), cluster, origin)
    config = for_cluster(configuration(job, settings), cluster)
    if job == "evaluate" and config.name is None:
        raise UserError("evaluate: name the run: resume=<run>, or name=<run> with the settings that it was made with")
    return submit(job, config, cluster)


def _print_manifests(argv: Sequence[str]) -> int:
    """`to=kubernetes --dry-run`: what KubeRay is to be given. kubectl, which has the user's login, does the rest."""
    from jobs.kubernetes import KEYS, kubernetes_config, print_manifests

    words, own, settings = sort_words(argv, own=("to", *KEYS))
    if "--dry-run" not in settings:
        raise UserError("to=kubernetes: prints manifests for kubectl, and starts nothing; say so with --dry-run")
    job = _job_of(words)
    if job == "sweep":
        raise UserError(
            "to=kubernetes: prints no manifest for sweeps. Start a RayCluster (docs/clusters.md), name it in "
            "clusters.yaml, and submit the sweep to that: transloom submit sweep to=<name>"
        )
    settings.remove("--dry-run")
    config = configuration(job, settings)
    values = {key: value for key, value in own.items() if key != "to"}
    print_manifests(job, config, kubernetes_config(values), sys.stdout)
    return 0


def _job_of(words: Sequence[str]) -> str:
    if len(words) == 1 and words[0] in JOBS and words[0] not in SUBMITTABLE:
        raise UserError(f"submit: {words[0]} can't be submitted; these can: {', '.join(SUBMITTABLE)}")
    if len(words) != 1 or words[0] not in SUBMITTABLE:
        raise UserError(f"submit: name one job, {', '.join(SUBMITTABLE)}; then its settings: transloom submit run")
    return words[0]


def with_cluster_settings(words: Sequence[str], cluster: Cluster) -> list[str]:
    """The words, before them what the cluster's entry says and they do not."""
    entry = {"output_dir": cluster.output_dir, "tracking.uri": cluster.tracking_uri}
    given = {word.partition("=")[0] for word in words}
    return [*(_word(key, value) for key, value in entry.items() if value and key not in given), *words]


def _word(key: str, value: str) -> str:
    quoted = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'{key}="{quoted}"'


def for_cluster(config: "Config", cluster: Cluster) -> "Config":
    """The configuration as the cluster is to have it.

    Raises:
        UserError: it names another cluster, or has a password or token in it.
    """
    from jobs.config import to_dict
    from pipeline.secrets import secrets_in

    if config.cluster.address not in (None, "auto"):
        raise UserError(f"cluster.address: to=<name> says which cluster; here it is {cluster.name}")
    for key, shown in secrets_in(to_dict(config)).items():
        raise UserError(
            f"{key}: {shown} has a password or token in it, and what is submitted can be read by all who "
            "reach the cluster. Leave it out, and set it in the environment that the cluster's Ray is started in: "
            "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD for MLflow"
        )
    return replace(config, cluster=replace(config.cluster, address="auto"))


def _refuse_in_use(config: "Config", client: "Client") -> None:
    """Here, since on the cluster the second job would first wait for the room that the first one has.

    Raises:
        UserError: another job is at this run or sweep.
    """
    for job in client.ours():
        about = job.metadata or {}
        if job.status.is_terminal() or about.get("transloom_run") != config.name:
            continue
        settings = parse_yaml(about["transloom_config"], f"the settings of {job.submission_id}")
        if settings["output_dir"] == config.output_dir:
            raise UserError(
                f"name: the job {job.submission_id} is at {config.name} now; follow it (transloom logs "
                f"{job.submission_id} -f to={client.cluster.name}), stop it, or choose another name="
            )


def submit(job: str, config: "Config", cluster: Cluster, origin: "Origin | None" = None) -> int:
    """Submits the job and follows it; its exit code.

    Args:
        origin: of a sweep, and only of one.
    Raises:
        UserError: the cluster does not answer, can't place the workers, or does not start the job.
    """
    from jobs.client import Client
    from jobs.cluster import refuse_unplaceable
    from jobs.config import to_yaml
    from jobs.console import console
    from jobs.follow import follow
    from jobs.nodes import versions
    from jobs.package import packed
    from jobs.report import code_revision
    from jobs.workspace import CONFIG_FILE
    from pipeline.secrets import redacted

    client = Client(cluster)
    refuse_unplaceable(config.cluster, client.nodes())
    _refuse_in_use(config, client)
    stamp = secrets.token_hex(3)
    kind = "-sweep" if origin else ""
    run = config.name or f"{re.sub('[^A-Za-z0-9._-]', '-', config.corpus.name)}{kind}-{stamp}"
    job_id = run if run.endswith(stamp) else f"{run}-{stamp}"
    config = replace(config, name=run)
    workers = f"{config.cluster.num_workers} x {config.cluster.cpus_per_worker:g} CPU"
    if config.cluster.gpus_per_worker:
        workers += f", {config.cluster.gpus_per_worker:g} GPU"
    about = {
        "command": redacted(" ".join(["transloom", *sys.argv[1:]])),
        "revision": code_revision(),
        "versions": versions(),
        **({"sweep": asdict(origin)} if origin else {}),
    }
    with packed(config, about) as folder:
        client.submit_job(
            entrypoint=f"python -m jobs {job} resolved={CONFIG_FILE}",
            submission_id=job_id,
            # Everybody who reaches the dashboard reads this and the metadata: no secrets.
            runtime_env={"working_dir": str(folder), "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_SECONDS)}},
            metadata={
                "job_name": run,
                "transloom_job": job,
                "transloom_run": run,
                "transloom_experiment": config.tracking.experiment,
                "transloom_workers": workers,
                "transloom_config": to_yaml(config),
                **({"transloom_choices": json.dumps(origin.choices)} if origin else {}),
            },
        )
    console.print(f"Submitted   {job_id} to {cluster.name} ({cluster.address})")
    console.print("Ctrl-C leaves it running.")
    return follow(client, job_id, is_new=True)
