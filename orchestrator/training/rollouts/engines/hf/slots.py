"""The key-value cache for continuous batching: rows are added and removed between steps.

Each row occupies a slot. All rows are right-aligned: the newest token of each is in the same column, so one
step writes one column and reads one rectangle, independent of the rows' lengths. A mask hides the columns
before the start of a row.

                 low        end
        slot 0    p p p r r r .        p prompt, r response, . free
        slot 1    - p p r r r .        - before the row's start: masked
        slot 2    - - - p p r .        (admitted later)
        slot 3    free

The occupied slots are always 0 .. rows - 1. A finished row is overwritten by one from the end, so dropping it
costs the copy of one row, and the model never computes finished rows. The bookkeeping is on the CPU; only
keys, values and the mask are on the device.
"""

from __future__ import annotations

import torch
from transformers.cache_utils import Cache, CacheLayerMixin

_GROWTH = 64
"""Number of free columns after the buffers were reallocated."""


class SlotCache(Cache):
    """A transformers `Cache` of at most `slots` rows for a model whose layers are all attention. Its
    buffers grow with the rows and columns in use.

    Between forwards the owner calls `insert`, `drop`, `clear` and `open_column`; inside a forward each layer
    writes the open column.
    """

    def __init__(self, layers: int, slots: int, dtype: torch.dtype, device: torch.device) -> None:
        self._buffers = [_SlotLayer(self) for _ in range(layers)]
        super().__init__(layers=list(self._buffers))
        self._device, self._hidden = device, torch.finfo(dtype).min
        self.slots = slots
        """The most rows."""
        self._mask = torch.zeros(0, 0, dtype=dtype, device=device)
        self._starts = torch.zeros(slots, dtype=torch.int64)
        self._ragged = False
        self.rows = 0
        self.low = self.end = 0

    @property
    def allocated(self) -> int:
        """Number of rows that memory is allocated for."""
        return self._mask.shape[0]

    @property
    def columns(self) -> int:
        """Capacity in columns, including hidden and free ones."""
        return self._mask.shape[1]

    def positions(self) -> torch.Tensor:
        """The position of each row's newest token in its own sequence, [rows] on the CPU: what a rotary
        embedding is computed from.
        """
        return self.end - 1 - self._starts[: self.rows]

    def insert(self, prefilled: Cache, lengths: torch.Tensor, repeats: torch.Tensor) -> None:
        """Append rows: entry `i` of `prefilled` (left-padded; its last `lengths[i]` columns are real)
        `repeats[i]` times.
        """
        width = prefilled.get_seq_length()
        first, last = self.rows, self.rows + int(repeats.sum())
        if self.rows == 0:
            self.low = self.end = 0
        if width > self.end or last > self.allocated:
            self._relocate(max(width, self.end), last)
        for buffer, source in zip(self._buffers, prefilled.layers, strict=True):
            assert isinstance(source, CacheLayerMixin)
            buffer.insert(
                source, repeats.to(self._device), slice(first, last), slice(self.end - width, self.end)
            )
        self._starts[first:last] = (self.end - lengths).repeat_interleave(repeats)
        self._hide(slice(first, last))
        self.rows = last
        self._trim()

    def drop(self, finished: torch.Tensor) -> torch.Tensor:
        """Free the slots where `finished` [rows] is True. Returns the old slots of the remaining rows in
        their new order, [remaining rows].
        """
        left = self.rows - int(finished.sum())
        origin = torch.arange(left)
        holes = finished[:left].nonzero()[:, 0]
        movers = (~finished[left:]).nonzero()[:, 0] + left
        if len(holes):
            origin[holes] = movers
            self._starts[holes] = self._starts[movers]
            holes, movers = holes.to(self._device), movers.to(self._device)
            self._mask[holes] = self._mask[movers]
            for buffer in self._buffers:
                buffer.move(movers, holes, slice(self.low, self.end))
        self.rows = left
        self._trim()
        return origin

    def clear(self) -> None:
        """Drop all rows."""
        self.rows = 0

    def open_column(self) -> None:
        """Make room for one more token per row."""
        if self.end == self.columns:
            self._relocate(self.end - self.low, self.rows)
        self.end += 1

    def mask(self, window: int | None = None) -> torch.Tensor | None:
        """The additive mask for the next forward pass, [rows, 1, 1, columns], or None if nothing must be
        masked. With a window, a token attends only to the last `window` tokens, including itself.
        """
        hidden = 0 if window is None else self.end - self.low - window
        if not self._ragged and hidden <= 0:
            return None
        mask = self._mask[: self.rows, None, None, self.low : self.end]
        if hidden > 0:
            mask = mask.clone()
            mask[..., :hidden] = self._hidden
        return mask

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Number of columns that a forward pass reads, without the open one."""
        return self.end - self.low - 1

    def _trim(self) -> None:
        """Skip the columns at the beginning that are hidden in every row."""
        if self.rows:
            starts = self._starts[: self.rows]
            self.low = int(starts.min())
            self._ragged = int(starts.max()) > self.low

    def _relocate(self, end: int, rows: int) -> None:
        """Move the columns in use into larger buffers, so that they end at column `end` with
        free columns after them, and there is memory for `rows` rows.
        """
        if rows > self.allocated:
            rows = min(self.slots, max(rows, 2 * self.allocated))
        rows = max(rows, self.allocated)
        columns = max(self.columns, end + max(_GROWTH, end // 4))
        source, target = slice(self.low, self.end), slice(end - (self.end - self.low), end)
        for buffer in self._buffers:
            buffer.relocate(source, target, (rows, columns), self.rows)
        self._starts += end - self.end
        self.low, self.end = target.start, end
        self._mask = self._mask.new_zeros(rows, columns)
        self._hide(slice(0, self.rows))

    def _hide(self, rows: slice) -> None:
        before = torch.arange(self.columns) < self._starts[rows, None]
        self._mask[rows] = (
            torch.zeros(before.shape, dtype=self._mask.dtype)
            .masked_fill(before, self._hidden)
            .to(self._device)
        )


class _SlotLayer(CacheLayerMixin):
    """One layer's keys and values (for latent attention: latents and rotary keys), each [slots, heads,
    columns, size].
    """

    def __init__(self, owner: SlotCache) -> None:
        super().__init__()
        self._owner = owner

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Allocate buffers for states of these shapes [rows, heads, columns, size]. They are filled with
        zeros, because a masked value is still multiplied by 0 and must not be NaN.
        """
        self.keys, self.values = (
            states.new_zeros(self._owner.allocated, states.shape[1], self._owner.columns, states.shape[3])
            for states in (key_states, value_states)
        )
        self.is_initialized = True

    def insert(self, source: CacheLayerMixin, repeats: torch.Tensor, rows: slice, columns: slice) -> None:
        """Write the prefilled states of `source`, each entry as often as `repeats` says."""
        assert source.keys is not None and source.values is not None
        if not self.is_initialized:
            self.lazy_initialization(source.keys, source.values)
        assert self.keys is not None and self.values is not None
        self.keys[rows, :, columns] = source.keys.repeat_interleave(repeats, dim=0)
        self.values[rows, :, columns] = source.values.repeat_interleave(repeats, dim=0)

    def move(self, sources: torch.Tensor, targets: torch.Tensor, columns: slice) -> None:
        """Copy rows `sources` over rows `targets`."""
        for buffer in (self.keys, self.values):
            assert buffer is not None
            live = buffer[:, :, columns]
            live[targets] = live[sources]

    def relocate(self, source: slice, target: slice, shape: tuple[int, int], rows: int) -> None:
        """Move the states of the first `rows` rows in the columns `source` to the columns `target` of new
        buffers of `shape` (rows, columns).
        """
        if not self.is_initialized:
            return
        assert self.keys is not None and self.values is not None
        self.keys, self.values = (
            self._moved(buffer, source, target, shape, rows) for buffer in (self.keys, self.values)
        )

    @staticmethod
    def _moved(
        buffer: torch.Tensor, source: slice, target: slice, shape: tuple[int, int], rows: int
    ) -> torch.Tensor:
        moved = buffer.new_zeros(shape[0], buffer.shape[1], shape[1], buffer.shape[3])
        moved[:rows, :, target] = buffer[:rows, :, source]
        return moved

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write the open column. Returns views of the states in all columns in use, [rows,
        heads, columns, size].
        """
        owner = self._owner
        assert self.keys is not None and self.values is not None
        self.keys[: owner.rows, :, owner.end - 1] = key_states[:, :, 0]
        self.values[: owner.rows, :, owner.end - 1] = value_states[:, :, 0]
        live = slice(owner.low, owner.end)
        return self.keys[: owner.rows, :, live], self.values[: owner.rows, :, live]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Number and offset of the columns that a forward pass reads."""
        return self._owner.end - self._owner.low, 0

    def get_seq_length(self) -> int:
        """Number of these columns, without the open one."""
        return self._owner.get_seq_length()

    def get_max_length(self) -> int:
        """-1: there is no limit, because the buffers grow."""
        return -1
