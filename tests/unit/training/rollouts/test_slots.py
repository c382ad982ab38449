"""Rows are added, removed and moved; the model reads each row's own history, right-aligned."""

from __future__ import annotations

import torch
from transformers import DynamicCache

from orchestrator.training.rollouts.engines.hf.slots import SlotCache

CPU = torch.device("cpu")


class Driver:
    """A cache of one layer whose keys are running numbers, and the expected content of each row."""

    def __init__(self, slots: int) -> None:
        self.cache = SlotCache(1, slots, torch.float32, CPU)
        self.histories: list[list[float]] = []
        self._next = 0

    def insert(self, lengths: list[int], repeats: list[int]) -> None:
        width = max(lengths)
        states = torch.full((len(lengths), 1, width, 1), torch.nan)
        for row, length in enumerate(lengths):
            states[row, 0, :, 0] = 0  # padding
            states[row, 0, width - length :, 0] = torch.arange(length) + 100.0 * (self._next + row + 1)
            self.histories += [states[row, 0, width - length :, 0].tolist() for _ in range(repeats[row])]
        self._next += len(lengths)
        prefilled = DynamicCache()
        prefilled.update(states, -states, 0)
        self.cache.insert(prefilled, torch.tensor(lengths), torch.tensor(repeats))

    def step(self) -> None:
        self.cache.open_column()
        mask = self.cache.mask()
        self._next += 1
        new = torch.arange(len(self.histories)) + 100.0 * self._next
        for row, history in enumerate(self.histories):
            history.append(float(new[row]))
        keys, values = self.cache.update(new.view(-1, 1, 1, 1), -new.view(-1, 1, 1, 1), 0)
        assert torch.equal(keys, -values)
        visible = (
            torch.ones(len(self.histories), keys.shape[2]) if mask is None else (mask[:, 0, 0] == 0).float()
        )
        for row, history in enumerate(self.histories):
            assert keys[row, 0, visible[row] == 1, 0].tolist() == history
            assert torch.isfinite(keys[row]).all()
        assert self.cache.positions().tolist() == [len(history) - 1 for history in self.histories]

    def drop(self, finished: list[int]) -> None:
        flags = torch.zeros(len(self.histories), dtype=torch.bool)
        flags[finished] = True
        self.histories = [self.histories[slot] for slot in self.cache.drop(flags).tolist()]


def test_rows_of_one_length_need_no_mask():
    driver = Driver(slots=4)
    driver.insert([3, 3], [2, 1])
    driver.cache.open_column()
    assert driver.cache.mask() is None
    windowed = driver.cache.mask(window=3)
    assert windowed is not None and (windowed[:, 0, 0] == 0).tolist() == [[False, True, True, True]] * 3
    assert driver.cache.mask(window=4) is None


def test_every_row_reads_its_own_history():
    driver = Driver(slots=6)
    driver.insert([3, 5], [2, 1])
    driver.step()
    driver.insert([2], [3])
    driver.step()
    driver.drop([0, 4])
    driver.step()
    driver.insert([9], [1])  # longer than anything in the cache so far
    driver.step()
    driver.drop([1, 2, 3])
    driver.step()
    assert driver.cache.rows == len(driver.histories) == 2


def test_columns_that_are_masked_in_every_row_are_not_read():
    driver = Driver(slots=2)
    driver.insert([9, 2], [1, 1])
    driver.step()
    driver.drop([0])
    driver.step()
    assert driver.cache.end - driver.cache.low == 4


def test_the_buffers_grow_with_the_longest_row_and_are_reused():
    driver = Driver(slots=2)
    driver.insert([4, 1], [1, 1])
    for _ in range(200):
        driver.step()
    wide = driver.cache.columns
    driver.drop([0])
    for _ in range(200):
        driver.step()
    assert 204 < wide < 300 and driver.cache.columns < 600


def test_an_emptied_cache_starts_again():
    driver = Driver(slots=2)
    driver.insert([4], [2])
    driver.step()
    driver.drop([0, 1])
    driver.insert([2], [1])
    driver.step()
    assert driver.cache.end - driver.cache.low == 3
