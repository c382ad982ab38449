import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.errors import ConfigError
from orchestrator.training.cluster.config import ClusterConfig
from orchestrator.training.cluster.placement import ActorSlot, Placement, Slot, plan_placement
from orchestrator.training.usage import Role


def cluster(**changes: Any) -> ClusterConfig:
    settings: dict[str, Any] = {
        "address": None,
        "resource": "cpu",
        "sku": "cpu-slot",
        "layout": "colocated",
        "strategy": "PACK",
        "slot_cpus": 1.0,
        "rollout": {"cpus": 0.4, "gpus": 0.0},
        "reward": {"cpus": 0.1, "gpus": 0.0},
        "learner": {"cpus": 0.4, "gpus": 0.0},
        "environments": {"rollout": None, "reward": None, "learner": None},
        "object_store_bytes": None,
        "startup_timeout_seconds": 60.0,
        "call_timeout_seconds": 60.0,
        "heartbeat_seconds": 5.0,
    }
    return ClusterConfig.model_validate(settings | changes)


def gpus(rollout: float, learner: float, **changes: Any) -> ClusterConfig:
    return cluster(
        resource="gpu",
        slot_cpus=8.0,
        rollout={"cpus": 1.0, "gpus": rollout},
        learner={"cpus": 1.0, "gpus": learner},
        **changes,
    )


def actor_slots(placement: Placement, role: Role) -> list[tuple[str, int]]:
    return [(actor_slot.name, actor_slot.slot) for actor_slot in placement.of(role)]


def test_colocated_workers_and_ranks_share_slots() -> None:
    placement = plan_placement(cluster(), 2, 2, 2)
    assert placement.slots == (Slot(1.0, 0, 1), Slot(1.0, 0, 1))
    assert actor_slots(placement, Role.ROLLOUT) == [("rollout-0", 0), ("rollout-1", 1)]
    assert actor_slots(placement, Role.LEARNER) == [("learner-0", 0), ("learner-1", 1)]
    assert actor_slots(placement, Role.REWARD) == [("reward-0", 0), ("reward-1", 1)]


def test_split_roles_have_slots_of_their_own() -> None:
    placement = plan_placement(cluster(layout="split"), 2, 1, 2)
    assert len(placement.slots) == 4
    assert actor_slots(placement, Role.LEARNER) == [("learner-0", 2), ("learner-1", 3)]
    assert actor_slots(placement, Role.REWARD) == [("reward-0", 0)]


def test_elastic_workers_have_slots_of_their_own() -> None:
    placement = plan_placement(gpus(0.5, 0.5), 2, 1, 1, {Role.ROLLOUT: "/python"}, elastic_workers=3)
    assert (len(placement.slots), len(placement.all_slots())) == (2, 5)
    alone = placement.elastic(7)
    assert alone.slots == (Slot(8.0, 1, 1),)
    (actor_slot,) = alone.actor_slots
    assert (actor_slot.name, actor_slot.slot, actor_slot.interpreter) == ("rollout-7", 0, "/python")
    assert actor_slot.share.gpus == 0.5
    assert plan_placement(gpus(2.0, 0.5), 1, 0, 1).elastic(1).slots[0].accelerators == 2


def test_more_ranks_than_rollout_workers() -> None:
    placement = plan_placement(cluster(), 1, 1, 4)
    assert len(placement.slots) == 4
    assert [actor_slot.slot for actor_slot in placement.of(Role.LEARNER)] == [0, 1, 2, 3]


def test_reward_workers_are_distributed_over_the_rollout_workers() -> None:
    placement = plan_placement(cluster(rollout={"cpus": 0.1, "gpus": 0.0}), 2, 5, 1)
    assert [actor_slot.slot for actor_slot in placement.of(Role.REWARD)] == [0, 1, 0, 1, 0]


def test_a_slot_that_is_too_small_is_reported_with_its_actors() -> None:
    with pytest.raises(ConfigError) as caught:
        plan_placement(cluster(slot_cpus=0.8), 1, 1, 1)
    assert (caught.value.key, caught.value.value, caught.value.allowed) == (
        "cluster.slot_cpus",
        "0.8",
        "0.9 or more",
    )
    assert caught.value.hint == "rollout-0, learner-0, reward-0 share one slot"


def test_a_slot_may_be_completely_full() -> None:
    placement = plan_placement(cluster(rollout={"cpus": 0.5, "gpus": 0.0}), 1, 1, 1)
    assert len(placement.slots) == 1


def test_cpu_slots_have_no_gpus() -> None:
    with pytest.raises(ConfigError) as caught:
        plan_placement(cluster(rollout={"cpus": 0.4, "gpus": 0.5}), 1, 1, 1)
    assert (caught.value.key, caught.value.value) == ("cluster.resource", "cpu")


@pytest.mark.parametrize(
    ("rollout", "learner", "expected"),
    [(0.5, 0.5, 1), (0.3, 0.3, 1), (1.0, 1.0, 2), (4.0, 1.0, 5), (1.0, 0.0, 1), (0.0, 0.0, 1)],
)
def test_gpus_of_a_slot_and_its_leases(rollout: float, learner: float, expected: int) -> None:
    placement = plan_placement(gpus(rollout, learner), 1, 0, 1)
    assert placement.slots == (Slot(8.0, expected, expected),)


def test_fractions_that_do_not_fit_one_gpu() -> None:
    with pytest.raises(ConfigError, match="fractions share one GPU"):
        plan_placement(gpus(0.7, 0.7), 1, 0, 1)


def test_a_whole_gpu_beside_a_fraction_takes_two() -> None:
    assert plan_placement(gpus(1.0, 0.5), 1, 0, 1).slots[0].gpus == 2


@pytest.mark.parametrize(
    ("slot", "bundle"),
    [
        (Slot(1.0, 0, 1), {"CPU": 1.0}),
        (Slot(0.0, 1, 1), {"GPU": 1.0}),
        (Slot(8.0, 2, 2), {"CPU": 8.0, "GPU": 2.0}),
    ],
)
def test_a_bundle_has_no_zero_entries(slot: Slot, bundle: dict[str, float]) -> None:
    assert slot.bundle() == bundle


@given(
    st.integers(1, 9),
    st.integers(0, 20),
    st.integers(1, 9),
    st.sampled_from(["colocated", "split"]),
    st.sampled_from([0.25, 0.5, 1.0, 2.0]),
)
def test_every_actor_has_a_slot_and_no_slot_is_overfull(
    rollouts: int, rewards: int, learners: int, layout: str, share: float
) -> None:
    config = gpus(share, share, layout=layout)
    placement = plan_placement(config, rollouts, rewards, learners)
    names = [actor_slot.name for actor_slot in placement.actor_slots]
    assert len(set(names)) == len(names) == rollouts + rewards + learners
    for index, slot in enumerate(placement.slots):
        shares = [actor_slot.share for actor_slot in placement.actor_slots if actor_slot.slot == index]
        assert shares
        assert sum(share.cpus for share in shares) <= slot.cpus
        assert math.ceil(sum(share.gpus for share in shares)) <= slot.gpus == slot.accelerators
    training = [actor_slot.slot for actor_slot in placement.actor_slots if actor_slot.role is not Role.REWARD]
    assert set(training) == set(range(len(placement.slots)))


def test_an_actor_slot_knows_its_share() -> None:
    actor_slot: ActorSlot = plan_placement(cluster(), 1, 1, 1).of(Role.REWARD)[0]
    assert actor_slot.share.cpus == 0.1
