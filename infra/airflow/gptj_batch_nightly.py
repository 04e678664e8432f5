"""An Airflow DAG: every night, what is new is scored on a Ray cluster that is there.

It needs astro-provider-ray (`ray_provider`) in Airflow, a connection `ray` to the cluster with its token, gptj-batch in
the cluster's image, and the job file where the cluster's head sees it. Copy it into the DAGs folder.

A retry goes on where the try before it ended; after exit code 3 it finds nothing to do and fails with 3 again. A run
that is late or was missed needs no run of its own: the next one does whatever is new (`catchup=False`). Two
at once would be refused by the output's lease (exit code 4).
"""

from datetime import UTC, datetime, timedelta

from airflow import DAG
from ray_provider.operators import SubmitRayJob

JOB_FILE = "/data/jobs/nightly.yaml"

with DAG(
    dag_id="gptj_batch_nightly",
    schedule="15 2 * * *",
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    catchup=False,
    max_active_runs=1,
    default_args={"retries": 2, "retry_delay": timedelta(minutes=10)},
) as dag:
    SubmitRayJob(
        task_id="score_what_is_new",
        conn_id="ray",
        entrypoint=f"python -m jobs.score_scheduled {JOB_FILE}",
        runtime_env={},
        job_timeout_seconds=20 * 3600,
        poll_interval=60,
    )
