"""Resume: submit a job that has ended again, to go on with its run from the newest checkpoint."""

import json
from dataclasses import replace

from transloom.jobs.cli import sort_words
from transloom.jobs.remote.clusters import choose_cluster
from transloom.pipeline.errors import UserError
from transloom.pipeline.untrusted import parse_yaml


def main(argv: list[str]) -> int:
    words, own, settings = sort_words(argv, own=("to",))
    if len(words) != 1:
        raise UserError("resume: name one job: transloom resume <job>; transloom jobs lists them")
    job_id = words[0]
    cluster = choose_cluster(own.get("to"))

    from transloom.jobs.config.compose import from_dict, load_config
    from transloom.jobs.remote.client import Client
    from transloom.jobs.remote.submission import for_cluster, submit
    from transloom.jobs.runs.workspace import refuse_other_name, with_changes

    job = Client(cluster).details(job_id)
    if not job.status.is_terminal():
        raise UserError(f"{job_id}: is still {job.status.value.lower()}: transloom stop {job_id} to={cluster.name}")
    about = job.metadata or {}
    if "transloom_config" not in about:
        raise UserError(
            f"{job_id}: was not submitted by `transloom submit`, so its settings are not known here. On a machine that "
            f"sees the runs' folder: transloom submit run resume=<run> to={cluster.name}"
        )
    before = from_dict(parse_yaml(about["transloom_config"], f"the settings of {job_id}"))
    kind = about["transloom_job"]
    if kind == "sweep":
        from transloom.jobs.sweep.settings import Origin, changed_sweep

        config = replace(changed_sweep(before, settings), name=before.name, output_dir=before.output_dir)
        origin = Origin(json.loads(about["transloom_choices"]), is_resumed=True)
        return submit(kind, for_cluster(config, cluster), cluster, origin)
    words = load_config(settings, are_changes=True)
    refuse_other_name(words, before.name)
    config = with_changes(before, words, settings)
    config = replace(config, name=before.name, resume=before.name, output_dir=before.output_dir)
    return submit(kind, for_cluster(config, cluster), cluster)
