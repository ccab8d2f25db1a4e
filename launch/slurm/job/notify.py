"""Tells a webhook that a run has ended; mail is sent by Slurm itself, also when a node is lost."""

import json
import urllib.request
from http.client import HTTPException
from pathlib import Path
from urllib.parse import urlsplit

from launch.slurm.runs.job_record import job_id, read_record

_SECONDS = 10.0


def notify(run: Path, what: str) -> None:
    """POST `{"text", "run", "job", "what"}` as JSON to each URL of the run's `notify`; the text suits Slack
    and Mattermost. A webhook that does not answer is reported in the log and changes nothing."""
    message = {"text": f"{run.name}: {what}", "run": str(run), "job": job_id(), "what": what}
    for url in read_record(run).allocation.get("notify", []):
        if "://" not in url:
            continue
        request = urllib.request.Request(
            url, json.dumps(message).encode(), {"Content-Type": "application/json"}, method="POST"
        )
        try:
            urllib.request.urlopen(request, timeout=_SECONDS).close()
        except (OSError, HTTPException, ValueError) as error:
            where = urlsplit(url)  # what follows the host is often a secret
            print(
                f"warning: notify={where.scheme}://{where.netloc.rpartition('@')[2]}/…: {error}", flush=True
            )
