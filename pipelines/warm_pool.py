"""Replicas that stay between the cells of a notebook, who starts and ends them, and how tables are run through them.

Ray Data's own actor pools live as long as one execution: every cell, and every `take` of a lazy dataset, would load the
model again. Here a keeper, an actor without CPUs that the notebook's process owns, starts replicas where they are first
asked for: by that process for a DataFrame, by a task of Ray Data for a dataset. They end with the keeper, and so with
the process. Where a pool has no room beside one that rests, that one goes: two models need not fit.
"""

import json
import sys
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any

import pyarrow as pa
import ray
from ray.exceptions import ActorDiedError, RayActorError, RayTaskError

from gptj_batch.errors import BackendError, ConfigError
from gptj_batch.model_folder import Head
from gptj_batch.stages.infer import ReplicaSettings
from gptj_batch.stages.replica import Replica
from gptj_batch.stages.resources import ReplicaPlan, plan_replicas
from gptj_batch.tasks.base import Task
from pipelines.ray_errors import as_ours

MAX_TABLES = 16  # in one replica at once
# A table that ends its replica is tried so often again; Ray Data would never stop.
MAX_RETRIES = 2
# A pool rests when nothing was asked of its replicas for so long: between two tables of one cell less passes.
RESTS_AFTER_S = 1.0
ANSWERS_WITHIN_S = 2.0
LOOK_EVERY_S = 0.25
TELL_AFTER_S = 60.0


@dataclass(frozen=True, kw_only=True)
class PoolSpec:
    """Which replicas: what each is started with and claims, and how many there should be."""

    settings: ReplicaSettings
    head: Head
    plan: ReplicaPlan
    tables_at_once: int

    @property
    def key(self) -> tuple[Any, ...]:
        """Return what replicas have in common that can serve in each other's place."""
        # As text: what is passed on to vLLM is a dictionary, which has no hash.
        settings = json.dumps(asdict(self.settings), sort_keys=True, default=str)
        return settings, self.head, self.plan.num_cpus, self.plan.num_gpus

    def number(self, num_tables: int | None) -> int:
        """Return how many replicas so many tables are worth; None where nobody knows how many there will be."""
        most = self.plan.initial_replicas
        return max(self.plan.min_replicas, most if num_tables is None else min(most, num_tables))


@dataclass
class _Pool:
    """The replicas of one key, each with the node that it is on."""

    spec: PoolSpec
    replicas: dict[Any, str] = field(default_factory=dict)
    used_s: float = field(default_factory=time.monotonic)


class Keeper:
    """The actor that owns all warm replicas of one process."""

    def __init__(self) -> None:
        self._pools: dict[tuple[Any, ...], _Pool] = {}
        self._lock = threading.Lock()

    def replicas(self, spec: PoolSpec, number: int, without: tuple[Any, ...] = ()) -> list[Any]:
        """Return up to `number` replicas, starting those that are missing.

        without: replicas that have ended or failed, and are replaced

        Raises what a replica raised that did not start.
        """
        with self._lock:
            pool = self._pools.setdefault(spec.key, _Pool(spec))
            pool.used_s = time.monotonic()
            for replica in without:
                if pool.replicas.pop(replica, None) is not None:
                    _end(replica)
            if missing := number - len(pool.replicas):
                least = max(1, spec.plan.min_replicas) - len(pool.replicas)
                self._start(pool, max(least, min(missing, self._room(spec, least))))
            return list(pool.replicas)[: spec.plan.max_replicas]

    def release(self) -> None:
        """End every replica."""
        with self._lock:
            for key in list(self._pools):
                self._release(key)

    def facts(self) -> list[dict[str, Any]]:
        """Return each replica's facts."""
        with self._lock:
            replicas = [replica for pool in self._pools.values() for replica in pool.replicas]
        facts: list[dict[str, Any]] = ray.get([replica.facts.remote() for replica in replicas])
        return facts

    def _start(self, pool: _Pool, number: int) -> None:
        spec = pool.spec
        options = {
            "num_cpus": spec.plan.num_cpus,
            "num_gpus": spec.plan.num_gpus,
            "max_concurrency": MAX_TABLES + 4,  # questions about it are answered beside the tables
            "max_restarts": -1,
            "max_task_retries": MAX_RETRIES,
        }
        actor: Any = ray.remote(Replica).options(**options)
        started = [actor.remote(spec.settings, spec.head, _node) for _ in range(number)]
        try:
            nodes = [facts["node"] for facts in ray.get([replica.facts.remote() for replica in started])]
        except BaseException:
            for replica in started:
                _end(replica)
            raise
        pool.replicas.update(zip(started, nodes, strict=True))

    def _room(self, spec: PoolSpec, least: int) -> int:
        """Return how many more replicas fit beside all that are there, ending resting pools until `least` do.

        Where others than us hold the cluster, Ray waits for room.
        """
        while (room := _fitting(spec, self._left())) < least:
            others = [key for key, pool in self._pools.items() if key != spec.key and pool.replicas]
            if not others:
                break
            resting = [key for key in others if _rests(self._pools[key])]
            if resting:
                self._release(min(resting, key=lambda key: self._pools[key].used_s))
            else:
                time.sleep(LOOK_EVERY_S)
        return room

    def _left(self) -> list[dict[str, float]]:
        """Return what our replicas leave of each node."""
        left = {node["NodeID"]: dict(node["Resources"]) for node in ray.nodes() if node["Alive"]}  # type: ignore[no-untyped-call]
        for pool in self._pools.values():
            for node in pool.replicas.values():
                for name, claim in (("CPU", pool.spec.plan.num_cpus), ("GPU", pool.spec.plan.num_gpus)):
                    if node in left:
                        left[node][name] = max(0.0, left[node].get(name, 0.0) - claim)
        return list(left.values())

    def _release(self, key: tuple[Any, ...]) -> None:
        for replica in self._pools.pop(key).replicas:
            _end(replica)


def _node() -> str:
    return str(ray.get_runtime_context().get_node_id())


def _fitting(spec: PoolSpec, nodes: list[dict[str, float]]) -> int:
    try:
        return plan_replicas(nodes, 1, None, spec.plan.num_gpus, spec.plan.num_cpus).max_replicas
    except ConfigError:
        return 0


def _rests(pool: _Pool) -> bool:
    """Tell whether nothing is asked of any replica; one that does not answer is busy."""
    asked = [replica.idle_s.remote() for replica in pool.replicas]
    answered, _ = ray.wait(asked, num_returns=len(asked), timeout=ANSWERS_WITHIN_S)
    if len(answered) < len(asked):
        return False
    try:
        return all(idle_s >= RESTS_AFTER_S for idle_s in ray.get(answered))
    except RayActorError:
        return True


def _end(replica: Any) -> None:
    with suppress(RayActorError, ValueError):
        ray.kill(replica)


class WarmReplicas:
    """What runs a task's tables through a pool; it travels to the tasks of Ray Data."""

    def __init__(self, keeper: Any, spec: PoolSpec, num_tables: int | None) -> None:
        self._keeper = keeper
        self._spec = spec
        self._number = spec.number(num_tables)

    def infer(self, name: str, task: Task, tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
        """Yield every table's results, in order; the next ones are in the replicas meanwhile.

        name: stands for the task, with all its settings    Raises GPTJBatchError.
        """
        crew = _Crew(self._ask_for(), self._spec.tables_at_once)
        waiting: deque[_Asked] = deque()
        try:
            for table in tables:
                if len(waiting) >= crew.room:
                    yield self._answer(waiting.popleft(), name, task, crew)
                waiting.append(crew.ask(name, task, table))
            while waiting:
                yield self._answer(waiting.popleft(), name, task, crew)
        finally:
            for asked in waiting:
                ray.cancel(asked.answer)

    def _answer(self, asked: "_Asked", name: str, task: Task, crew: "_Crew") -> pa.Table:
        """Wait for an answer. A replica that was ended meanwhile, to make room for another model, is replaced."""
        for _ in range(1 + MAX_RETRIES):
            crew.done(asked)
            try:
                return ray.get(asked.answer)
            except ActorDiedError as error:
                if (ours := as_ours(error)) is not None:
                    raise ours from None
                crew.replicas = self._ask_for(without=(asked.replica,))
                asked = crew.ask(name, task, asked.table)
            except RayActorError as error:
                raise _ended(asked.table) from error
            except RayTaskError as error:
                ours = as_ours(error)
                if isinstance(ours, BackendError):
                    crew.replicas = self._ask_for(without=(asked.replica,))
                raise ours or error from None
        raise _ended(asked.table)

    def _ask_for(self, without: tuple[Any, ...] = ()) -> list[Any]:
        asked = self._keeper.replicas.remote(self._spec, self._number, without)
        if not ray.wait([asked], timeout=TELL_AFTER_S)[0]:
            plan = self._spec.plan
            claim = f"{plan.num_gpus:g} GPUs and {plan.num_cpus:g} CPUs"
            print(  # noqa: T201 - it is meant for the cell, or the log of Ray Data
                f"waiting for {self._number} replicas of {claim} each: a model is loaded, or the cluster has no room",
                file=sys.stderr,
            )
        try:
            replicas: list[Any] = ray.get(asked)
        except (RayTaskError, RayActorError) as error:
            ours = as_ours(error)
            if ours is None:
                raise
            raise ours from None
        return replicas


@dataclass
class _Asked:
    """A table that a replica has, and the answer to come."""

    table: pa.Table
    replica: Any
    answer: Any


class _Crew:
    """Replicas, and how many tables each has in hand for this caller."""

    def __init__(self, replicas: list[Any], tables_at_once: int) -> None:
        self.replicas = replicas
        self._tables_at_once = tables_at_once
        self._in_hand: dict[Any, int] = {}

    @property
    def room(self) -> int:
        """Return how many tables may be in hand, one more a replica than it runs at once."""
        return len(self.replicas) * (self._tables_at_once + 1)

    def ask(self, name: str, task: Task, table: pa.Table) -> _Asked:
        """Hand a table to the replica that has the fewest."""
        replica = min(self.replicas, key=lambda one: self._in_hand.get(one, 0))
        self._in_hand[replica] = self._in_hand.get(replica, 0) + 1
        return _Asked(table, replica, replica.infer.remote(name, task, table))

    def done(self, asked: _Asked) -> None:
        """Note that a table has left its replica."""
        self._in_hand[asked.replica] -= 1


def _ended(table: pa.Table) -> BackendError:
    return BackendError(
        f"a replica ended {1 + MAX_RETRIES} times with the same {table.num_rows} rows; Ray's logs say how. If it ran "
        "out of memory, set dtype, or backend={'kv_cache_gb': ...}; else find the row by halves, and leave it out"
    )
