"""Submit: compose a job's configuration here, refuse mistakes here, and hand the job to a Ray cluster."""

import json
import re
import secrets
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

from transloom.jobs.remote.clusters import Cluster
from transloom.pipeline.errors import UserError
from transloom.pipeline.run_folder import CONFIG_FILE
from transloom.pipeline.untrusted import parse_yaml

if TYPE_CHECKING:
    from transloom.jobs.config.schema import Config
    from transloom.jobs.remote.client import Client
    from transloom.jobs.sweep.settings import Origin

STOP_SECONDS = 600  # after which Ray kills a job that is to stop: time for a step, a checkpoint and MLflow
JOB_ENVIRONMENT = {
    "RAY_JOB_STOP_WAIT_TIME_S": str(STOP_SECONDS),
    # Off, where the cluster's environment has it on, as in many containers: the job's code comes as source, and each of
    # its processes would compile all that it imports.
    "PYTHONDONTWRITEBYTECODE": "",
}


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
    from transloom.jobs.config.compose import to_dict
    from transloom.pipeline.secrets import secrets_in

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
    from transloom.jobs.config.compose import to_yaml
    from transloom.jobs.ray_cluster.nodes import versions
    from transloom.jobs.ray_cluster.session import refuse_unplaceable
    from transloom.jobs.remote.client import Client
    from transloom.jobs.remote.follow import follow
    from transloom.jobs.remote.package import packed
    from transloom.jobs.runs.report import code_revision
    from transloom.jobs.terminal.console import console
    from transloom.pipeline.secrets import redacted

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
            entrypoint=f"python -m transloom.jobs {job} resolved={CONFIG_FILE}",
            submission_id=job_id,
            # Everybody who reaches the dashboard reads this and the metadata: no secrets.
            runtime_env={"working_dir": str(folder), "env_vars": JOB_ENVIRONMENT},
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
