"""SIGKILL of actors, of the shipper and of the database at random points: no promised event is lost, none
counts twice.
"""

import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.ledger.spool import ship
from orchestrator.ledger.sql.engine import open_engine
from orchestrator.ledger.sql.journal import SqlJournal
from orchestrator.ledger.sql.migrations import require_head
from tests.contracts.ledger_stores import PostgresServer

PROGRAM = Path(__file__).parent / "ledger_processes.py"
ROOT = Path(__file__).parents[2]
ROUNDS = 50
DATABASE_ROUNDS = 6

pytestmark = pytest.mark.slow


def start(*arguments: object) -> subprocess.Popen[bytes]:
    command = [sys.executable, str(PROGRAM), *map(str, arguments)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, cwd=ROOT, env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin"}
    )


def kill(process: subprocess.Popen[bytes]) -> list[str]:
    """SIGKILL; gives the whole lines that the process had written."""
    process.send_signal(signal.SIGKILL)
    output, _ = process.communicate()
    return output.decode().split("\n")[:-1]


def wait_for_line(process: subprocess.Popen[bytes]) -> None:
    assert process.stdout is not None
    assert process.stdout.readline() != b""


def require_each_once(url: str, spool: Path, promised: list[str]) -> None:
    """What was promised is in the journal, after what is still in the spool was shipped; nothing is there
    twice.
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


def test_actors_and_shippers_are_killed_and_every_promise_is_kept(tmp_path: Path):
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


@pytest.fixture
def server() -> Iterator[PostgresServer]:
    made = PostgresServer()
    yield made
    made.stop()


def test_the_database_is_killed_and_every_promise_is_kept(tmp_path: Path, server: PostgresServer):
    chance = random.Random(11)
    spool = tmp_path / "spool"
    engine = open_engine(server.url)
    require_head(engine)
    engine.dispose()
    actor = start("emit", spool, "a")
    shipper = start("ship", spool, server.url)
    wait_for_line(shipper)
    for _ in range(DATABASE_ROUNDS):
        time.sleep(chance.uniform(0.05, 0.3))
        server.kill()
        time.sleep(0.2)
        server.start_again()
    promised = kill(actor)
    assert shipper.poll() is None  # it outlived every crash of the database
    kill(shipper)
    assert promised
    require_each_once(server.url, spool, promised)
