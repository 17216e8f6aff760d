"""Submit: compose a job's configuration here, refuse mistakes here, and hand the job to a Ray cluster."""

import sys
from collections.abc import Sequence

from transloom.jobs.cli import configuration, sort_words
from transloom.jobs.command_table import COMMANDS
from transloom.jobs.remote.clusters import choose_cluster
from transloom.jobs.remote.submission import for_cluster, submit, with_cluster_settings
from transloom.pipeline.errors import UserError

SUBMITTABLE = ("run", "prepare", "train", "evaluate", "sweep")


def main(argv: list[str]) -> int:
    words, own, settings = sort_words(argv, own=("to",))
    if own.get("to") == "kubernetes":
        return _print_manifests(argv)
    job = _job_of(words)
    cluster = choose_cluster(own.get("to"))
    settings = with_cluster_settings(settings, cluster)
    if job == "sweep":
        from transloom.jobs.sweep.settings import refuse_impossible, sweep_settings

        config, origin = sweep_settings(settings)
        refuse_impossible(config)
        return submit(job, for_cluster(config, cluster), cluster, origin)
    config = for_cluster(configuration(job, settings, is_elsewhere=True), cluster)
    if job == "evaluate" and config.name is None:
        raise UserError("evaluate: name the run: resume=<run>, or name=<run> with the settings that it was made with")
    return submit(job, config, cluster)


def _print_manifests(argv: Sequence[str]) -> int:
    """`to=kubernetes --dry-run`: what KubeRay is to be given. kubectl, which has the user's login, does the rest."""
    from transloom.jobs.remote.kubernetes import KEYS, kubernetes_config, print_manifests

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
    config = configuration(job, settings, is_elsewhere=True)
    values = {key: value for key, value in own.items() if key != "to"}
    print_manifests(job, config, kubernetes_config(values), sys.stdout)
    return 0


def _job_of(words: Sequence[str]) -> str:
    if len(words) == 1 and words[0] in COMMANDS and words[0] not in SUBMITTABLE:
        raise UserError(f"submit: {words[0]} can't be submitted; these can: {', '.join(SUBMITTABLE)}")
    if len(words) != 1 or words[0] not in SUBMITTABLE:
        raise UserError(f"submit: name one job, {', '.join(SUBMITTABLE)}; then its settings: transloom submit run")
    return words[0]
