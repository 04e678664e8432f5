"""The warm replicas of a call: which pool its settings ask for, in this process's session."""

from gptj_batch.stages.resources import plan_replicas
from pipelines.build import replica_settings, tables_at_once
from pipelines.cluster import node_resources
from pipelines.prepare import Run
from pipelines.session import session
from pipelines.warm_pool import MAX_TABLES, PoolSpec, WarmReplicas


def warm_replicas(run: Run, num_tables: int | None) -> WarmReplicas:
    """Return the way to the replicas that a run asks for; those that are missing start at its first table.

    Raises ConfigError where none fits into the cluster, and where there is no cluster.
    """
    keeper = session().keeper()
    wanted = run.job.replicas
    plan = plan_replicas(node_resources(), wanted.min, wanted.max, wanted.gpus_each, wanted.cpus_each)
    spec = PoolSpec(
        settings=replica_settings(run, plan),
        head=run.task.head,
        plan=plan,
        tables_at_once=min(MAX_TABLES, tables_at_once(run)),
    )
    return WarmReplicas(keeper, spec, num_tables)
