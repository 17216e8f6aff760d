"""Ray's client of a cluster's jobs: bounded in time, its failures in a sentence. Imports ray at once: import late."""

import asyncio
import logging
import os
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import requests
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from transloom.jobs.remote.clusters import LOCAL, Cluster, is_loopback
from transloom.pipeline.errors import UserError

ANSWER_SECONDS = 20.0
RECONNECT_SECONDS = 60.0


class Client(JobSubmissionClient):
    """What can be asked of a cluster.

    Raises, in every method:
        UserError: the cluster does not answer, refuses the token, or refuses the request.
    """

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        token = cluster.token()
        for handler in logging.getLogger("ray").handlers:
            handler.setLevel(logging.WARNING)  # Ray tells of every package that it uploads, and of every connection
        self._session = requests.Session()
        # A proxy that the environment names is for other machines.
        self._session.trust_env = not is_loopback(urlsplit(cluster.address).hostname or "")
        for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):  # Ray would take their address instead of this one
            os.environ.pop(name, None)
        try:
            super().__init__(cluster.address, headers={"Authorization": f"Bearer {token}"} if token else {})
        except (RuntimeError, ValueError, KeyError, requests.RequestException) as error:
            raise UserError(f"{cluster.name}: what answers at {cluster.address} is no Ray dashboard") from error

    def nodes(self) -> list[dict[str, float]]:
        """The resources of each living node, such as {"CPU": 4.0}."""
        answer = self._do_request("GET", f"/api/v0/nodes?limit=1000&timeout={ANSWER_SECONDS / 2:.0f}")
        if answer.status_code != 200:
            self._raise_error(answer)
        rows = answer.json()["data"]["result"]["result"]
        return [row["resources_total"] for row in rows if row["state"] == "ALIVE"]

    def ours(self) -> list[JobDetails]:
        """The jobs that were submitted to the cluster, the newest first."""
        jobs = [one for one in self.list_jobs() if one.submission_id]
        return sorted(jobs, key=lambda one: one.start_time or 0, reverse=True)

    def details(self, job_id: str) -> JobDetails:
        """
        Raises:
            UserError: there is no such job; names the newest.
        """
        jobs = self.ours()
        found = [one for one in jobs if one.submission_id == job_id]
        if not found:
            of_run = [one for one in jobs if (one.submission_id or "").rpartition("-")[0] == job_id]
            known = ", ".join(one.submission_id or "" for one in (of_run or jobs)[:5]) or "none yet"
            if of_run:
                raise UserError(f"{job_id}: is the name of a run; its jobs, the newest first: {known}")
            raise UserError(f"{job_id}: no such job on the cluster {self.cluster.name}; the newest there: {known}")
        return found[0]

    def follow_log(self, job_id: str, show: Callable[[str], None]) -> JobDetails:
        """Gives `show` the job's log piece by piece, from its beginning until the job has ended; a connection that
        breaks is made anew. Returns how it ended."""
        return asyncio.run(self._follow_log(job_id, show))

    async def _follow_log(self, job_id: str, show: Callable[[str], None]) -> JobDetails:
        seen = 0
        last_heard = time.monotonic()
        while True:
            at = 0
            try:
                async for text in self.tail_job_logs(job_id):
                    fresh = text[max(0, seen - at) :]
                    at += len(text)
                    seen = max(seen, at)
                    last_heard = time.monotonic()
                    if fresh:
                        show(fresh)
            except (RuntimeError, OSError, aiohttp.ClientError):
                pass  # whether the cluster is there at all, the next line finds out
            try:
                job = self.get_job_info(job_id)
                last_heard = time.monotonic()
            except UserError:
                if time.monotonic() - last_heard > RECONNECT_SECONDS:
                    raise
            else:
                if job.status.is_terminal():
                    return job
            await asyncio.sleep(1.0)

    def wait_for(self, job_id: str, is_reached: Callable[[JobStatus], bool], seconds: float) -> JobDetails:
        """The job, as soon as its status is such, or when the time is over."""
        deadline = time.monotonic() + seconds
        while True:
            job = self.get_job_info(job_id)
            if is_reached(job.status) or time.monotonic() > deadline:
                return job
            time.sleep(0.5)

    def _do_request(
        self, method: str, endpoint: str, *, data: bytes | None = None, json_data: dict | None = None, **more: Any
    ) -> requests.Response:
        """Ray's own waits for ever where nobody answers."""
        name, address = self.cluster.name, self._address
        try:
            answer = self._session.request(
                method,
                address + endpoint,
                data=data,
                json=json_data,
                headers=self._headers,
                timeout=ANSWER_SECONDS,
                allow_redirects=False,  # a token goes nowhere else
                **more,
            )
        except requests.Timeout:
            raise UserError(
                f"{name}: {address} does not answer within {ANSWER_SECONDS:.0f} s: is it the address of Ray's "
                "dashboard, and can this machine reach it?"
            ) from None
        except requests.RequestException as error:
            advice = "transloom cluster up starts it" if name == LOCAL else "is Ray up there, is a tunnel to it open?"
            raise UserError(f"{name}: nothing answers at {address} ({_reason(error)}); {advice}") from None
        if answer.status_code == 401:
            raise UserError(
                f"{name}: the cluster asks for a token (401), and its entry names none: put the token into a file of "
                "mode 600, and its path as token_file into clusters.yaml"
            )
        if answer.status_code == 403:
            raise UserError(
                f"{name}: the cluster refuses the token of {self.cluster.token_file} (403): it was started with "
                "another one. Get its present token from whoever started it"
            )
        return answer

    def _raise_error(self, r: requests.Response) -> None:
        raise UserError(f"{self.cluster.name}: {self._address} answers {r.status_code}: {r.text.strip()[:500]}")


def _reason(error: BaseException) -> str:
    """What lies at the bottom of a failed request, such as "Connection refused"."""
    seen: BaseException | None = error
    while seen is not None:
        for one in (seen, *seen.args):
            if isinstance(one, OSError) and one.strerror:
                return one.strerror
            if isinstance(reason := getattr(one, "reason", None), BaseException):
                return _reason(reason)
        seen = seen.__cause__ or seen.__context__
    return type(error).__name__
