import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptj_batch.errors import ConfigError
from gptj_batch.stages.resources import CPU_STAGE_CPUS, ReplicaPlan, plan_replicas, tasks_at_once


def node(cpus: float, gpus: float = 0.0) -> dict[str, float]:
    """A node as Ray describes it: what it does not have is not there; other resources are."""
    return {"CPU": cpus, "memory": 1e9, "node:10.0.0.1": 1.0, **({"GPU": gpus} if gpus else {})}


def planned(
    *nodes: dict[str, float],
    least: int = 1,
    most: int | None = None,
    gpus_each: float | None = None,
    cpus_each: float | None = None,
) -> ReplicaPlan:
    return plan_replicas(nodes, least, most, gpus_each, cpus_each)


def test_a_laptop_has_one_replica_on_all_cores_with_one_left_for_the_rest() -> None:
    plan = planned(node(2))
    assert (plan.max_replicas, plan.num_cpus, plan.num_threads) == (1, 1.0, 2)
    assert (plan.num_gpus, plan.device) == (0.0, "cpu")


def test_a_single_cpu_is_shared_by_the_replica_and_the_rest() -> None:
    plan = planned(node(1))
    assert (plan.max_replicas, plan.num_threads) == (1, 1)
    assert plan.num_cpus + CPU_STAGE_CPUS <= 1


def test_without_gpus_there_is_a_replica_a_node_with_all_of_its_cores() -> None:
    plan = planned(node(16), node(16), node(16))
    assert (plan.max_replicas, plan.num_cpus, plan.num_threads) == (3, 15.0, 16)


def test_a_small_head_does_not_make_small_replicas_of_large_nodes() -> None:
    plan = planned(node(1), node(32), node(32))
    assert (plan.max_replicas, plan.num_threads) == (2, 32)


def test_one_large_node_does_not_leave_many_small_ones_idle() -> None:
    plan = planned(node(8), *[node(4)] * 6)
    assert (plan.max_replicas, plan.num_threads) == (7, 4)


def test_a_head_that_offers_no_cpus_does_not_count() -> None:
    assert planned(node(0), node(4), node(4)).max_replicas == 2


@pytest.mark.parametrize("cpus", [8, 16, 96])
def test_every_gpu_has_a_replica(cpus: int) -> None:
    plan = planned(node(cpus, 8), node(cpus, 8))
    assert (plan.max_replicas, plan.initial_replicas, plan.num_gpus, plan.device) == (16, 16, 1.0, "cuda")


def test_a_node_with_more_gpus_than_cpus_uses_all_gpus() -> None:
    assert planned(node(2, 8)).max_replicas == 8


def test_nodes_without_gpus_have_no_replicas_where_others_have_them() -> None:
    plan = planned(node(4), node(16, 4), node(1))
    assert (plan.max_replicas, plan.num_gpus) == (4, 1.0)


def test_without_gpus_each_the_gpus_can_be_left_alone() -> None:
    plan = planned(node(4, 2), gpus_each=0.0)
    assert (plan.max_replicas, plan.device, plan.num_threads) == (1, "cpu", 4)


@pytest.mark.parametrize(("share", "number"), [(1.0, 2), (0.5, 4), (0.4, 4), (0.3, 6), (0.2, 10), (0.1, 20), (2.0, 1)])
def test_shares_of_a_gpu_are_counted_exactly_and_never_span_two(share: float, number: int) -> None:
    assert planned(node(64, 2), gpus_each=share).max_replicas == number


def test_the_cpus_of_a_replica_can_be_given() -> None:
    plan = planned(node(16), cpus_each=4)
    assert (plan.max_replicas, plan.num_cpus, plan.num_threads) == (3, 4, 4)
    plan = planned(node(16, 2), cpus_each=4)
    assert (plan.max_replicas, plan.num_cpus, plan.num_gpus) == (2, 4, 1.0)
    assert planned(node(2), cpus_each=0.3).num_threads == 1


def test_the_number_of_replicas_can_be_given() -> None:
    plan = planned(node(32, 8), least=2, most=4)
    assert (plan.min_replicas, plan.max_replicas, plan.initial_replicas) == (2, 4, 4)


def test_more_replicas_than_fit_may_come_later_but_are_not_waited_for() -> None:
    plan = planned(node(8, 2), most=10)
    assert (plan.max_replicas, plan.initial_replicas) == (10, 2)


def test_more_than_fit_cannot_be_demanded() -> None:
    with pytest.raises(ConfigError, match=r"replicas\.min \(3\) is above what fits into the cluster \(2\)"):
        planned(node(8, 2), least=3)


@pytest.mark.parametrize(
    ("nodes", "settings"),
    [
        ([node(4)], {"gpus_each": 1.0}),
        ([node(4, 2), node(4, 2)], {"gpus_each": 4.0}),
        ([node(2)], {"cpus_each": 2.0}),
        ([node(4, 1)], {"cpus_each": 4.0}),
        ([node(0, 8)], {}),
        ([node(0)], {}),
        ([{"memory": 1.0}], {}),
        ([], {}),
    ],
)
def test_where_not_one_fits_the_claim_and_the_nodes_are_named(
    nodes: list[dict[str, float]], settings: dict[str, float]
) -> None:
    with pytest.raises(ConfigError, match=r"replicas\.gpus_each, replicas\.cpus_each.* the nodes have"):
        planned(*nodes, **settings)  # type: ignore[arg-type]


def test_a_claim_of_all_cpus_is_refused_since_nothing_could_be_read_beside_it() -> None:
    with pytest.raises(
        ConfigError, match=r"2 CPUs .* beside 0\.25 CPUs for reading and writing; the nodes have 2 CPUs"
    ):
        planned(node(2), cpus_each=2.0)


@given(
    st.lists(st.tuples(st.integers(0, 64), st.integers(0, 8)), min_size=1, max_size=6),
    st.none() | st.sampled_from([0.0, 0.1, 0.25, 0.5, 1.0, 2.0]),
    st.none() | st.floats(0.1, 8),
)
def test_what_is_planned_fits(sizes: list[tuple[int, int]], gpus_each: float | None, cpus_each: float | None) -> None:
    nodes = [node(cpus, gpus) for cpus, gpus in sizes]
    try:
        plan = planned(*nodes, gpus_each=gpus_each, cpus_each=cpus_each)
    except ConfigError:
        return
    assert 1 <= plan.min_replicas <= plan.initial_replicas <= plan.max_replicas
    assert plan.num_threads >= 1 and plan.num_cpus > 0
    claimed = plan.max_replicas * plan.num_cpus
    assert claimed <= sum(cpus for cpus, _ in sizes)
    assert plan.max_replicas * plan.num_gpus <= sum(gpus for _, gpus in sizes) + 1e-3


def test_a_plan_knows_what_it_claims_and_whether_a_node_has_room_for_it() -> None:
    node = {"CPU": 8.0, "GPU": 1.0}
    plan = plan_replicas([node], 1, None, None, 2.0)
    assert plan.claim == "1 GPUs and 2 CPUs"
    assert plan.has_room([{"CPU": 64.0}, node])
    assert not plan.has_room([{"CPU": 64.0}, {"CPU": 2.0, "GPU": 1.0}])
    assert not plan.has_room([])


def test_a_short_run_starts_one_process_for_its_stages_and_a_longer_one_as_many_as_it_has_work_for() -> None:
    assert [tasks_at_once(units) for units in (0, 1, 8, 9, 64, 2000)] == [1, 1, 1, 2, 8, 250]
