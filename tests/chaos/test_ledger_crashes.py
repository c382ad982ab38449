"""SIGKILL of actors, shippers, controllers and the database at random points, in 50 rounds: no promised
event is lost, none counts twice.
"""

import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import pytest
from sqlalchemy import text

from orchestrator.ledger.budgets import Budget
from orchestrator.ledger.calendar import day_of
from orchestrator.ledger.ledger import Ledger
from orchestrator.ledger.spool import ship
from orchestrator.ledger.sql.engine import open_engine
from orchestrator.ledger.sql.journal import SqlJournal
from orchestrator.ledger.sql.migrations import require_head
from tests.chaos.ledger_processes import PRICES, RUN
from tests.contracts.ledger_stores import PostgresServer

PROGRAM = Path(__file__).parent / "ledger_processes.py"
ROOT = Path(__file__).parents[2]
ROUNDS = 30
CONTROLLER_ROUNDS = 14
DATABASE_ROUNDS = 6

pytestmark = pytest.mark.slow


def start(*arguments: object) -> subprocess.Popen[bytes]:
    command = [sys.executable, str(PROGRAM), *map(str, arguments)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, cwd=ROOT, env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin"}
    )


def kill(process: subprocess.Popen[bytes]) -> list[str]:
    """Send SIGKILL. Returns the complete lines that the process had written."""
    process.send_signal(signal.SIGKILL)
    output, _ = process.communicate()
    return output.decode().split("\n")[:-1]


def wait_for_line(process: subprocess.Popen[bytes]) -> None:
    assert process.stdout is not None
    assert process.stdout.readline() != b""


def require_each_once(url: str, spool: Path, promised: list[str]) -> None:
    """Check that all promised events are in the journal after the rest of the spool
    was shipped, each of them once.
    """
    engine = open_engine(url)
    journal = SqlJournal(engine, time.time_ns)
    ship(spool, journal)
    recorded = list(journal.events())
    counts = Counter(row.event.event_id for row in recorded)
    assert [row.seq for row in recorded] == list(range(1, len(recorded) + 1))
    assert set(counts.values()) <= {1}
    assert [event_id for event_id in promised if event_id not in counts] == []
    written = sum(path.read_bytes().count(b"\n") for path in spool.glob("*.jsonl"))
    assert len(recorded) == written
    assert journal.bad_lines() == []
    engine.dispose()


def test_killing_actors_and_shippers_loses_no_promised_event(tmp_path: Path):
    chance = random.Random(11)
    url, spool = f"sqlite:///{tmp_path}/ledger.db", tmp_path / "spool"
    engine = open_engine(url)
    require_head(engine)
    engine.dispose()
    promised: list[str] = []
    actors = [start("emit", spool, name) for name in ("a", "b")]
    shipper = start("ship", spool, url)
    wait_for_line(shipper)
    for number in range(ROUNDS):
        time.sleep(chance.uniform(0.0, 0.06))
        if number % 2:
            kill(shipper)
            shipper = start("ship", spool, url)
            wait_for_line(shipper)
        else:
            victim = chance.randrange(len(actors))
            promised += kill(actors[victim])
            actors[victim] = start("emit", spool, f"round{number}")
            wait_for_line(actors[victim])
    for actor in actors:
        promised += kill(actor)
    kill(shipper)
    assert len(promised) > ROUNDS
    require_each_once(url, spool, promised)


def test_killing_controllers_keeps_promises_leases_and_budget(tmp_path: Path):
    """Each controller takes over from the previous one: it ships its spool and settles its spending."""
    chance = random.Random(11)
    url, spool = f"sqlite:///{tmp_path}/ledger.db", tmp_path / "spool"
    ledger = Ledger.open(url, PRICES)
    day, limit = day_of(time.time_ns()), Decimal(1_000)
    ledger.budgets.define(Budget("team", {"team": "team"}, day, day + 2, limit, "USD", ()))
    promised: list[str] = []
    for _ in range(CONTROLLER_ROUNDS):
        controller = start("control", spool, url)
        wait_for_line(controller)
        time.sleep(chance.uniform(0.0, 1.5))
        promised += kill(controller)
    last = start("control", spool, url)  # on a slow machine too, one controller settles something
    while not ledger.budgets.status("team").settled:
        assert last.poll() is None
        time.sleep(0.05)
    promised += kill(last)
    assert len(promised) > CONTROLLER_ROUNDS
    require_each_once(url, spool, promised)
    report = ledger.report(RUN)
    assert report.difference_ns == 0
    assert report.attributed_ns + report.unattributed_ns == report.leased_ns > 0
    assert ledger.rejections(RUN) == []
    ledger.budgets.expire()
    status = ledger.budgets.status("team")
    assert 0 < status.settled <= ledger.cost_so_far(RUN)
    assert status.pending <= status.available
    engine = open_engine(url)
    with engine.connect() as connection:
        endings = connection.execute(
            text("SELECT reservation FROM transfers WHERE kind IN ('settle', 'expire', 'void')")
        ).scalars()
        assert max(Counter(endings).values()) == 1
    engine.dispose()


@pytest.fixture
def server() -> Iterator[PostgresServer]:
    made = PostgresServer()
    yield made
    made.stop()


def test_killing_the_database_loses_no_promised_event(tmp_path: Path, server: PostgresServer):
    chance = random.Random(11)
    spool = tmp_path / "spool"
    engine = open_engine(server.url)
    require_head(engine)
    engine.dispose()
    actor = start("emit", spool, "a")
    wait_for_line(actor)
    shipper = start("ship", spool, server.url)
    wait_for_line(shipper)
    for _ in range(DATABASE_ROUNDS):
        time.sleep(chance.uniform(0.05, 0.3))
        server.kill()
        time.sleep(0.2)
        server.start_again()
    promised = kill(actor)
    assert shipper.poll() is None  # it survived every crash of the database
    kill(shipper)
    assert promised
    require_each_once(server.url, spool, promised)
