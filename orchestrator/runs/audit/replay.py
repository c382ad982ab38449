"""Replays groups.jsonl and finds where its records contradict each other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass, field

from orchestrator.runs.audit.account import Account, Kind, Sampled, Sums, Violation, ranges
from orchestrator.training.group_log import (
    Arrived,
    Dropped,
    Evaluated,
    Finished,
    GroupRecord,
    Lost,
    Requested,
    Started,
    Trained,
)


@dataclass
class Replay:
    """The state of a run according to its records; `read` takes them in order, `end` closes the account."""

    violations: list[Violation] = field(default_factory=list[Violation])
    step: int = 0
    """The last completed step."""
    next_group: int = 0
    begins_after: int | None = None
    """The step after which the records begin: 0, unless the run continued in a new directory."""
    starts: int = 0
    finished: bool = False
    trained: dict[int, int] = field(default_factory=dict[int, int])
    """The step that trained on each group, of the steps that count."""
    steps: dict[int, dict[int, Sampled]] = field(default_factory=dict[int, dict[int, Sampled]])
    """The batches of the steps that count."""
    all_batches: dict[int, list[dict[int, Sampled]]] = field(
        default_factory=dict[int, list[dict[int, Sampled]]]
    )
    """The batches of every step, including those that a restart rolled back."""
    uninformative: set[int] = field(default_factory=set[int])
    """Groups that were replaced by others, by dynamic sampling."""
    dropped: set[int] = field(default_factory=set[int])
    """Groups that were requested in excess, by over-sampling."""
    accounted: set[int] = field(default_factory=set[int])
    """Groups of steps before the records begin, and lost ones that are reported already."""
    arrived_tokens: Counter[int] = field(default_factory=Counter[int])
    """Tokens of all groups that arrived, by the version at which they were requested."""
    evaluated_tokens: Counter[int] = field(default_factory=Counter[int])
    """By step."""
    abandoned_versions: set[int] = field(default_factory=set[int])
    """Versions with requests that never arrived: workers may have sampled for them."""
    _waiting: dict[int, int] = field(default_factory=dict[int, int])
    """Groups in flight, and the version at which they were requested."""
    _ready: dict[int, Sampled] = field(default_factory=dict[int, Sampled])
    _cancelled: set[int] = field(default_factory=set[int])
    """Groups that were dropped in flight, which count as aborted unless they arrive after all."""
    _backlog: set[int] = field(default_factory=set[int])
    _start: Started | None = None
    _surplus: Sums = field(default_factory=Sums)
    _aborted: Sums = field(default_factory=Sums)
    _evaluation: Sums = field(default_factory=Sums)

    def read(self, record: GroupRecord) -> None:
        """Process the next record."""
        if self.begins_after is None and not isinstance(record, Started):
            self.begins_after = 0
            self._report("history_missing", "groups.jsonl does not begin with the start of the run")
        self.finished = isinstance(record, Finished)
        match record:
            case Started():
                self._restart(record)
            case Requested():
                self._request(record)
            case Arrived():
                self._arrive(record)
            case Lost():
                self._lose(record)
            case Dropped():
                self._drop(record)
            case Trained():
                self._train(record)
            case Evaluated():
                self._evaluation.groups += record.groups
                self._evaluation.tokens += record.tokens
                self.evaluated_tokens[record.step] += record.tokens
            case Finished():
                self._finish(record)

    def end(self, running: bool) -> int:
        """Finish the replay; return the number of groups of a live run that are in flight. In a run that has
        ended they count as aborted.
        """
        if running:
            return len(self._waiting) + len(self._ready)
        self._abandon()
        return 0

    def accounts(self) -> tuple[Account, Account]:
        """The outcomes of the groups, and of their tokens."""
        batches = list(self.steps.values())
        groups = Account(
            trained=sum(map(len, batches)),
            surplus=self._surplus.groups,
            aborted=self._aborted.groups,
            evaluation=self._evaluation.groups,
        )
        tokens = Account(
            trained=sum(sampled.tokens for batch in batches for sampled in batch.values()),
            surplus=self._surplus.tokens,
            aborted=self._aborted.tokens,
            evaluation=self._evaluation.tokens,
        )
        return groups, tokens

    # -- one record each

    def _restart(self, record: Started) -> None:
        self.starts += 1
        self._abandon()
        if self.begins_after is None:
            self.begins_after = self.step = record.step
            self.accounted = set(range(record.next_group)) - set(record.outstanding)
            if record.step:
                self._report(
                    "history_missing",
                    f"groups.jsonl begins after step {record.step}: nothing is known of the groups before it",
                    record.step,
                )
        if record.step > self.step:
            self._miss_steps(self.step + 1, record.step)
        for step in [step for step in self.steps if step > record.step]:
            for group, sampled in self.steps.pop(step).items():
                self._aborted.add(sampled)
                self.trained.pop(group, None)
        outstanding, known = set(record.outstanding), set(range(record.next_group))
        self.accounted -= outstanding
        self.uninformative &= known - outstanding
        self.dropped &= known - outstanding
        self._cancelled.clear()
        done = self.trained.keys() | self.uninformative | self.dropped | self.accounted
        if lost := known - outstanding - done:
            self._report(
                "group_lost",
                f"the run continued after step {record.step} without groups {ranges(lost)}: they were neither"
                " trained on nor requested again",
                record.step,
                lost,
            )
            self.accounted |= lost
        if again := self.trained.keys() & outstanding:
            self._report(
                "requested_twice",
                f"the run continued after step {record.step} and requests groups {ranges(again)} again, which"
                " it has trained on",
                record.step,
                again,
            )
        self._start, self.step, self.next_group = record, record.step, record.next_group
        self._backlog = outstanding

    def _request(self, record: Requested) -> None:
        self._check_version(record.version, record.groups)
        repeated: list[int] = []
        for group in record.groups:
            if group in self._backlog:
                self._backlog.remove(group)
            elif group >= self.next_group:
                if group > self.next_group:
                    self._skip(range(self.next_group, group))
                self.next_group = group + 1
            else:
                repeated.append(group)
                if sampled := self._ready.pop(group, None):
                    self._aborted.add(sampled)
                elif group in self._waiting:
                    self._abandon_request(group)
            self._waiting[group] = record.version
        if repeated:
            self._report(
                "requested_twice",
                f"groups {ranges(repeated)} were requested after step {self.step}, although they were"
                " requested before and not lost",
                self.step,
                repeated,
            )

    def _arrive(self, record: Arrived) -> None:
        self.arrived_tokens[record.version] += sum(record.tokens)
        unknown: list[int] = []
        other_version: list[int] = []
        for group, tokens, oldest in zip(record.groups, record.tokens, record.oldest, strict=True):
            sampled = Sampled(tokens, oldest)
            requested = self._waiting.get(group)
            if record.fate == "refused":
                self._surplus.add(sampled)
                if group in self._cancelled:  # it was complete by then
                    self._cancelled.remove(group)
                    self._aborted.groups -= 1
                continue
            if requested is None:
                unknown.append(group)
                self.next_group = max(self.next_group, group + 1)
            else:
                del self._waiting[group]
                if requested != record.version or (tokens and not requested <= oldest <= self.step):
                    other_version.append(group)
            if record.fate == "uninformative":
                self.uninformative.add(group)
                self._surplus.add(sampled)
            elif group in self._ready or group in self.trained:
                self._surplus.add(sampled)
            else:
                self._ready[group] = sampled
        if unknown:
            self._report(
                "not_requested",
                f"groups {ranges(unknown)} arrived after step {self.step} without having been requested",
                self.step,
                unknown,
            )
        if other_version:
            self._report(
                "version",
                f"groups {ranges(other_version)} arrived after step {self.step} with versions that do not fit"
                " their requests",
                self.step,
                other_version,
            )

    def _lose(self, record: Lost) -> None:
        unknown: list[int] = []
        for group in record.groups:
            if group in self._waiting:
                self._abandon_request(group)
            elif group in self._ready:
                self._aborted.add(self._ready.pop(group))
            else:
                unknown.append(group)
                continue
            self._backlog.add(group)
        if unknown:
            self._report(
                "not_requested",
                f"groups {ranges(unknown)} were lost after step {self.step} without having been requested",
                self.step,
                unknown,
            )

    def _drop(self, record: Dropped) -> None:
        unknown: list[int] = []
        for group in record.groups:
            if group in self._waiting:
                self._abandon_request(group)
                self._cancelled.add(group)
            elif group in self._ready:
                self._surplus.add(self._ready.pop(group))
            elif group in self._backlog:
                self._backlog.remove(group)
            else:
                unknown.append(group)
                continue
            self.dropped.add(group)
        if unknown:
            self._report(
                "not_requested",
                f"groups {ranges(unknown)} were dropped after step {self.step} without having been requested",
                self.step,
                unknown,
            )

    def _train(self, record: Trained) -> None:
        step = record.step
        if step > self.step + 1:
            self._miss_steps(self.step + 1, step - 1)
        elif step <= self.step:
            self._report("step_repeated", f"step {step} was made again after step {self.step}", step)
        batch: dict[int, Sampled] = {}
        twice: list[int] = []
        never: list[int] = []
        for group in record.groups:
            if group in batch or (group in self.trained and group not in self._ready):
                twice.append(group)
            elif group not in self._ready:
                never.append(group)
            sampled = self._ready.pop(group, None) or batch.get(group) or Sampled()
            if self._waiting.pop(group, None) is not None:
                self._backlog.discard(group)
            self._backlog.discard(group)
            batch[group] = sampled
            self.trained[group] = step
        if twice:
            self._report("trained_twice", f"step {step} trains on groups {ranges(twice)} again", step, twice)
        if never:
            self._report(
                "not_sampled",
                f"step {step} trains on groups {ranges(never)}, whose rollouts never arrived",
                step,
                never,
            )
        self._check_batch(record, batch, {*twice, *never})
        if step in self.steps:  # a repeated step: what it held first is trained, too
            batch = batch | self.steps[step]
        self.steps[step] = batch
        self.all_batches.setdefault(step, []).append(batch)
        self.step = max(self.step, step)

    def _finish(self, record: Finished) -> None:
        start = self._start
        if record.step > self.step:
            self._miss_steps(self.step + 1, record.step)
        left = self._waiting.keys() | self._ready.keys() | self._backlog
        unneeded = 0
        if start is not None:  # a run that was made shorter may have more groups than it needs
            needed = (start.steps - start.step) * start.groups_per_step
            unneeded = max(len(start.outstanding) - needed, 0)
        if len(left) > unneeded:
            self._report(
                "group_lost",
                f"the run was finished after step {record.step} without groups {ranges(left)}: they were"
                " requested and not trained on",
                record.step,
                left,
            )

    # -- checks and repairs

    def _check_batch(self, record: Trained, batch: dict[int, Sampled], reported: Set[int]) -> None:
        start, step = self._start, record.step
        if start is None:
            return
        if len(record.groups) != start.groups_per_step:
            self._report(
                "batch_size",
                f"step {step} trains on {len(record.groups)} groups instead of {start.groups_per_step}",
                step,
            )
        sampled = {group: facts for group, facts in batch.items() if facts.tokens and group not in reported}
        stale = [group for group, facts in sampled.items() if step - 1 - facts.oldest > start.max_staleness]
        if stale:
            worst = max(step - 1 - sampled[group].oldest for group in stale)
            self._report(
                "too_stale",
                f"step {step} trains on groups {ranges(stale)}, which are up to {worst} versions old;"
                f" max_staleness is {start.max_staleness}",
                step,
                stale,
            )

    def _check_version(self, version: int, groups: Sequence[int]) -> None:
        """A request names the learner's version, which follows the newest step as soon as
        its weights are published.
        """
        if version not in (self.step - 1, self.step):
            self._report(
                "version",
                f"groups {ranges(groups)} were requested at version {version}, after step {self.step}",
                self.step,
                groups,
            )

    def _skip(self, groups: range) -> None:
        self._report(
            "group_lost", f"groups {ranges(groups)} were never requested, but later ones were", groups=groups
        )
        self.accounted.update(groups)

    def _miss_steps(self, first: int, last: int) -> None:
        self._report(
            "step_missing", f"nothing is recorded of steps {ranges(range(first, last + 1))}", step=first
        )
        self.step = last

    def _abandon(self) -> None:
        """Abandon everything in flight: the run stops here, or continues from a checkpoint."""
        for group in list(self._waiting):
            self._abandon_request(group)
        for sampled in self._ready.values():
            self._aborted.add(sampled)
        self._ready.clear()

    def _abandon_request(self, group: int) -> None:
        self.abandoned_versions.add(self._waiting.pop(group))
        self._aborted.add()

    def _report(self, kind: Kind, message: str, step: int | None = None, groups: Iterable[int] = ()) -> None:
        self.violations.append(Violation(kind, message, step, tuple(sorted(groups))))
