"""The warm replicas of a call: which pool its settings ask for, in this process's session."""

from dataclasses import replace

from gptj_batch.stages.resources import plan_replicas
from pipelines.backend_choice import choose_backend, gpus_of_replica, with_backend
from pipelines.build import tables_at_once
from pipelines.cluster import node_resources
from pipelines.prepare import Run
from pipelines.replica import replica_settings
from pipelines.session import session
from pipelines.warm_pool import MAX_TABLES, PoolSpec, WarmReplicas


def warm_replicas(run: Run, num_tables: int | None) -> WarmReplicas:
    """Return the way to the replicas that a run asks for; those that are missing start at its first table.

    Raises ConfigError where none fits into the cluster, and where there is no cluster.
    """
    keeper = session().keeper()
    nodes, wanted = node_resources(), run.job.replicas
    has_gpu = wanted.gpus_each != 0 and any(node.get("GPU", 0) > 0 for node in nodes)
    choice = choose_backend(run.job, has_gpu)
    gpus_each = gpus_of_replica(run.job, choice, has_gpu)
    plan = plan_replicas(nodes, wanted.min, wanted.max, gpus_each, wanted.cpus_each)
    run = replace(run, job=with_backend(run.job, choice.kind))
    spec = PoolSpec(
        settings=replica_settings(run, plan.device, plan.num_threads),
        head=run.task.head,
        plan=plan,
        tables_at_once=min(MAX_TABLES, tables_at_once(run)),
    )
    return WarmReplicas(keeper, spec, num_tables)
