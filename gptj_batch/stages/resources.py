"""What a replica claims from the cluster, and how many replicas there can be."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import floor

from gptj_batch.errors import ConfigError

# Reading, tokenizing, decoding and writing are short and mostly wait on the disk; a whole CPU for each would starve
# them next to a replica on a small machine.
CPU_STAGE_CPUS = 0.25
# A process that runs them takes Ray three seconds of a CPU to start, a unit mostly a tenth of one.
UNITS_A_PROCESS = 8
_ROUNDING = 1e-6


@dataclass(frozen=True, kw_only=True)
class ReplicaPlan:
    """The claim of one replica, and between how many and how many there are."""

    min_replicas: int
    max_replicas: int
    initial_replicas: int
    num_gpus: float
    num_cpus: float
    num_threads: int

    @property
    def claim(self) -> str:
        """Return what a replica claims, in words."""
        return f"{self.num_gpus:g} GPUs and {self.num_cpus:g} CPUs"

    def has_room(self, nodes: Sequence[Mapping[str, float]]) -> bool:
        """Say whether one replica fits on a node, were it alone on it."""
        return any(_fitting(node, self.num_gpus, self.num_cpus) for node in nodes)

    def fits_into(self, free: Mapping[str, float]) -> bool:
        """Say whether one replica fits into what is free of all nodes together, wherever that lies."""
        return free.get("CPU", 0) + _ROUNDING >= self.num_cpus and free.get("GPU", 0) + _ROUNDING >= self.num_gpus

    @property
    def device(self) -> str:
        """Return the device that a replica computes on."""
        return "cuda" if self.num_gpus > 0 else "cpu"


def tasks_at_once(num_units: int) -> int:
    """Return how many tasks of a stage on CPUs may run at once: its units should be worth the processes."""
    return max(1, -(-num_units // UNITS_A_PROCESS))


def plan_replicas(
    nodes: Sequence[Mapping[str, float]],
    min_replicas: int,
    max_replicas: int | None,
    gpus_each: float | None,
    cpus_each: float | None,
) -> ReplicaPlan:
    """Choose a replica's claim from the nodes' resources (`CPU`, `GPU`), where the user left it open.

    With GPUs, each replica takes one. Without, there is one replica a node, which computes on all of its cores: two
    halves would each read all the weights. It claims all but one CPU, so that reading and writing go on beside it,
    and sets its threads by itself, since Ray would give it as many as it claims.

    Raises ConfigError where not even one replica fits.
    """
    has_gpus = any(node.get("GPU", 0) > 0 for node in nodes)
    num_gpus = gpus_each if gpus_each is not None else float(has_gpus)
    node_cpus = _cpus_of_whole_nodes(nodes)
    takes_nodes = cpus_each is None and num_gpus == 0
    if cpus_each is not None:
        num_cpus = cpus_each
    elif num_gpus > 0:
        num_cpus = _cpus_beside_gpus(nodes, num_gpus)
    else:
        num_cpus = float(max(node_cpus - 1, 1)) if node_cpus > 1 else 0.5
    per_node = [_fitting(node, num_gpus, num_cpus) for node in nodes]
    fitting = sum(map(bool, per_node)) if takes_nodes else sum(per_node)
    if fitting == 0:
        raise ConfigError(
            f"no node has room for one replica of {num_gpus:g} GPUs and {num_cpus:g} CPUs (replicas.gpus_each, "
            f"replicas.cpus_each) beside {CPU_STAGE_CPUS:g} CPUs for reading and writing; the nodes have "
            f"{_described(nodes)}"
        )
    most = fitting if max_replicas is None else max_replicas
    if min_replicas > most:
        raise ConfigError(f"replicas.min ({min_replicas}) is above what fits into the cluster ({most})")
    share = max(1, round(node_cpus if takes_nodes else num_cpus))
    return ReplicaPlan(
        min_replicas=min_replicas,
        max_replicas=most,
        initial_replicas=max(min_replicas, min(most, fitting)),
        num_gpus=num_gpus,
        num_cpus=num_cpus,
        num_threads=share,
    )


def _cpus_of_whole_nodes(nodes: Sequence[Mapping[str, float]]) -> int:
    """Return the size of node that one replica a node should be made for, so that most CPUs compute.

    Not the smallest node's: a head of one CPU would make slow replicas of all others.
    """
    sizes = [int(node.get("CPU", 0)) for node in nodes if node.get("CPU", 0) >= 1]
    return max(sizes, key=lambda size: (size * sum(other >= size for other in sizes), size), default=1)


def _cpus_beside_gpus(nodes: Sequence[Mapping[str, float]], num_gpus: float) -> float:
    """Return one CPU, or less where half of a node's would not do for a replica on each of its GPUs."""
    places = [(node.get("CPU", 0), _on_gpus(node, num_gpus)) for node in nodes]
    halves = [cpus / 2 / number for cpus, number in places if number]
    return min([1.0, *(max(floor(half * 100) / 100, 0.01) for half in halves if half > 0)])


def _fitting(node: Mapping[str, float], num_gpus: float, num_cpus: float) -> int:
    """Return how many replicas fit on a node, leaving room for the CPU stages."""
    by_cpu = _times(node.get("CPU", 0) - CPU_STAGE_CPUS, num_cpus)
    return max(0, min(by_cpu, _on_gpus(node, num_gpus)) if num_gpus > 0 else by_cpu)


def _on_gpus(node: Mapping[str, float], num_gpus: float) -> int:
    """Return how many replicas a node's GPUs have room for; a share of a GPU is of one GPU."""
    gpus = node.get("GPU", 0)
    return floor(gpus) * _times(1.0, num_gpus) if num_gpus < 1 else _times(gpus, num_gpus)


def _times(whole: float, share: float) -> int:
    """Return how often a share fits; five times for a fifth, which `1 // 0.2` does not say."""
    return floor(whole / share + _ROUNDING)


def _described(nodes: Sequence[Mapping[str, float]]) -> str:
    return "; ".join(f"{node.get('CPU', 0):g} CPUs and {node.get('GPU', 0):g} GPUs" for node in nodes[:8]) or "nothing"
