"""Loading weights into an engine: by name the first time, piece by piece in place from then on."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
import torch
from torch import Tensor

from orchestrator.config.compose import compose
from orchestrator.training.models.build import build_model
from orchestrator.training.models.characters import character_tokenizer
from orchestrator.training.records import WeightVersion
from orchestrator.training.rollouts.engines.hf.sampler import HFSampler
from orchestrator.training.rollouts.loading import WeightLoader
from orchestrator.training.tensors.buckets import NamedTensor, flatten

BUCKET_BYTES = 256


class HoldsWeights:
    """A model with weights in its own memory. Counts the tensors that are loaded by name."""

    def __init__(self, storage: dict[str, Tensor]) -> None:
        self.storage, self.by_name = storage, 0
        self.versions: list[WeightVersion] = []

    def load_weights(self, version: WeightVersion, tensors: Iterable[NamedTensor]) -> None:
        for name, tensor in tensors:
            self.by_name += 1
            self.storage[name].copy_(tensor)
        self.versions.append(version)

    def weight_storage(self, name: str) -> Tensor | None:
        return self.storage[name]

    def weights_written(self, version: WeightVersion) -> None:
        self.versions.append(version)


def state(value: float) -> list[NamedTensor]:
    """One tensor that is split into pieces, and three that are not."""
    small = [(f"{index}", torch.full((9,), value + index)) for index in range(3)]
    return [("wide", torch.full((40, 5), value)), *small]


def room() -> dict[str, Tensor]:
    return {name: torch.zeros_like(tensor) for name, tensor in state(0.0)}


def holds(engine: HoldsWeights, value: float) -> bool:
    return all(torch.equal(engine.storage[name], tensor) for name, tensor in state(value))


def test_only_the_first_version_is_loaded_by_name() -> None:
    engine = HoldsWeights(room())
    loader = WeightLoader(engine)
    for version in range(1, 4):
        loader.load(version, flatten(state(float(version)), BUCKET_BYTES))
        assert holds(engine, version)
    assert engine.by_name == 4
    assert engine.versions == [1, 2, 3]


def test_reallocated_memory_of_the_engine_is_found() -> None:
    engine = HoldsWeights(room())
    loader = WeightLoader(engine)
    loader.load(1, flatten(state(1.0), BUCKET_BYTES))
    engine.storage["wide"].data = torch.zeros(40, 5)
    loader.load(2, flatten(state(2.0), BUCKET_BYTES))
    assert holds(engine, 2.0)


@pytest.mark.parametrize(
    "place", [torch.zeros(40, 5, dtype=torch.bfloat16), torch.zeros(5, 40).T], ids=["dtype", "strides"]
)
def test_weights_with_another_dtype_or_shape_are_always_loaded_by_name(place: Tensor) -> None:
    engine = HoldsWeights(room() | {"wide": place})
    loader = WeightLoader(engine)
    for version in (1, 2):
        loader.load(version, flatten(state(float(version)), BUCKET_BYTES))
        assert bool((place == version).all())
    assert engine.by_name == 8


@pytest.mark.slow
def test_a_model_with_reallocated_memory_is_loaded_there() -> None:
    """The engine's parameters are used, not the memory that they had before."""
    model = build_model(compose("grpo", []).model, seed=0)
    engine = HFSampler(model, character_tokenizer(64), 64, 8, torch.device("cpu"), record_routes=False)
    loader, wanted = WeightLoader(engine), build_model(compose("grpo", []).model, seed=1).state_dict()
    for version in (1, 2):
        loader.load(version, flatten(wanted.items(), 1 << 16))
        for parameter in model.parameters():
            parameter.data = torch.zeros_like(parameter)
    assert not any(parameter.any() for parameter in model.parameters())
    loader.load(3, flatten(wanted.items(), 1 << 16))
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in model.state_dict().items())


def test_weights_without_memory_of_their_own_are_always_loaded_by_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine = HoldsWeights(room())
    monkeypatch.setattr(engine, "weight_storage", lambda name: None)
    loader = WeightLoader(engine)
    for version in (1, 2):
        loader.load(version, flatten(state(float(version)), BUCKET_BYTES))
        assert holds(engine, version)
    assert engine.by_name == 8


def test_a_changed_bucket_size_is_handled() -> None:
    engine = HoldsWeights(room())
    loader = WeightLoader(engine)
    for version, bucket_bytes in enumerate((256, 512, 512, 256)):
        loader.load(version, flatten(state(float(version)), bucket_bytes))
        assert holds(engine, version)
    assert engine.by_name == 12


def test_an_incomplete_or_different_version_is_rejected() -> None:
    engine = HoldsWeights(room())
    loader = WeightLoader(engine)
    whole = list(flatten(state(1.0), BUCKET_BYTES))
    loader.load(1, whole)
    for version, other in ((2, whole[:-1]), (3, [*whole, whole[0]])):
        with pytest.raises(ValueError, match=f"version {version}: not the {len(whole)} buckets of before"):
            loader.load(version, other)
    with pytest.raises(ValueError, match=f"version 4: bucket {len(whole) - 1} has other pieces now"):
        loader.load(4, [*whole[:-1], whole[0]])
    assert engine.versions == [1]
