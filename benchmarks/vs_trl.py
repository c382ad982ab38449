"""Compares this system with TRL's GRPOTrainer, end to end: the same machine, cores, initial model, prompts in
the same order, group size, token budget, rewards, algorithm and float32, alternating in one run.

    python benchmarks/vs_trl.py [--workload demo] [--staleness 0] [--steps 10] [--rounds 2] [OVERRIDE ...]

Our side is `orchestrator run grpo` as a user runs it, with Ray, DeepSpeed, ledger and metrics; an OVERRIDE is
a Hydra override of it. TRL runs in its own environment, `.venv-trl`, which is created if it is missing;
`trl_side.py` configures it. There are two workloads: `demo` starts from the demo's cold start (created once,
stored under `.cache/`), so lengths and rewards are realistic; `smollm2_135m` is a pretrained chat model that
answers sums in its own words. With `--staleness 1` our side trains on rollouts of the previous version while
it samples the next ones; TRL samples and trains in turns.

A step is a whole cycle, from the end of one optimizer step to the end of the next. The first step of each run
is a warm-up and is left out. Figures are medians over the steps of all rounds:

    tokens_per_s   sampled response tokens / seconds of the whole step
    generate_s     sampling. TRL: inside `model.generate`. Ours: while any rollout worker samples
    update_s       the rest of the step: rewards, forward and backward, optimizer, weights
    cpu_s          CPU seconds of all processes per step (mean), comparable on a machine shared with others
    reward         mean over the steps; reward_error is its standard error

Then `engine_vs_generate.py` compares the samplers alone. The exit code is 1 if our side trains on fewer than
4 times TRL's tokens per second, or if its reward is lower by more than two standard errors of the difference.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median, pstdev
from typing import Any

import engine_vs_generate
import torch
from machine import write_result
from process_cpu import CpuMeter
from transformers.utils import logging
from trl_settings import LAYOUT, NOT_TIMED, SAME_FOR_BOTH, WORKLOADS, stage_overrides

from orchestrator.config.compose import compose, quoted
from orchestrator.config.run_config import RunConfig
from orchestrator.runs.directory import RunDirectory
from orchestrator.training.models.build import build_model, build_tokenizer
from orchestrator.training.prompts.load import load_prompts
from tests.support.ports import quiet_ports

HERE = Path(__file__).parent
ROOT = HERE.parent
CACHE = ROOT / ".cache" / "vs_trl"
PROMPTS = CACHE / "prompts.jsonl"
PROGRAM = Path(sys.executable).parent / "orchestrator"
TRL_PYTHON = ROOT / ".venv-trl" / "bin" / "python"

LEAST_SPEEDUP = 4.0


@dataclass(frozen=True, slots=True)
class Step:
    """One step of one system; `ended_ns` is wall time."""

    ended_ns: int
    step_s: float
    generate_s: float
    tokens: int
    rollouts: int
    reward: float
    reward_std: float


@dataclass(frozen=True, slots=True)
class Round:
    """One run of one system: its steps without the first, and their mean CPU seconds."""

    steps: tuple[Step, ...]
    cpu_s: float


def warmed_up(steps: Sequence[Step], meter: CpuMeter) -> Round:
    """Leave out the first step."""
    cpu = meter.between(steps[0].ended_ns, steps[-1].ended_ns)
    return Round(tuple(steps[1:]), cpu / (len(steps) - 1))


def figures(system: str, rounds: Sequence[Round]) -> dict[str, Any]:
    """Compute a row of the table."""
    steps = [step for each in rounds for step in each.steps]
    rollouts = sum(step.rollouts for step in steps)
    error = math.sqrt(sum(step.reward_std**2 / step.rollouts for step in steps)) / len(steps)
    return {
        "system": system,
        "tokens_per_s": round(median(step.tokens / step.step_s for step in steps)),
        "step_s": round(median(step.step_s for step in steps), 3),
        "generate_s": round(median(step.generate_s for step in steps), 3),
        "update_s": round(median(step.step_s - step.generate_s for step in steps), 3),
        "reward": round(fmean(step.reward for step in steps), 4),
        "reward_error": round(error, 4),
        "cpu_s": round(fmean(each.cpu_s for each in rounds), 3),
        "tokens_per_cpu_s": round(
            sum(step.tokens for step in steps) / sum(len(each.steps) * each.cpu_s for each in rounds)
        ),
        "length_mean": round(sum(step.tokens for step in steps) / rollouts, 1),
        "rounds": len(rounds),
        "steps": len(steps),
    }


def compared(trl: Mapping[str, Any], ours: Mapping[str, Any]) -> dict[str, Any]:
    """Compare our side with the target."""
    speedup = ours["tokens_per_s"] / trl["tokens_per_s"]
    difference = ours["reward"] - trl["reward"]
    error = math.hypot(trl["reward_error"], ours["reward_error"])
    return {
        "speedup": round(speedup, 2),
        "cpu_speedup": round(ours["tokens_per_cpu_s"] / trl["tokens_per_cpu_s"], 2),
        "reward_difference": round(difference, 4),
        "reached": speedup >= LEAST_SPEEDUP and difference >= -2 * error,
    }


# -- the common initial model


def pretrained_model(name: str) -> Path:
    """A model of conf/model/ as a folder of transformers."""
    folder = CACHE / name
    if not folder.exists():
        config = compose("grpo", [f"model={name}"]).model
        build_model(config, 0).save_pretrained(folder)
        build_tokenizer(config).save_pretrained(folder)
    return folder


def cold_start() -> Path:
    """The model of the demo's cold start, trained by an ordinary run unless an
    earlier benchmark has done so.
    """
    overrides = (*stage_overrides("sft"), *NOT_TIMED)
    described = compose("sft", overrides).model_dump_json().encode()
    folder = CACHE / f"model-{hashlib.sha256(described).hexdigest()[:12]}"
    if not folder.exists():
        print(f"cold start: once, then kept in {folder.relative_to(ROOT)}", file=sys.stderr)
        run, _ = orchestrator_run("sft", overrides)
        shutil.copytree(run.path / "model", folder)
    return folder


def orchestrator_run(job: str, overrides: Sequence[str]) -> tuple[RunDirectory, CpuMeter]:
    """Run a job to its end."""
    run_id = f"{job}-{time.time_ns()}"
    output = f"output_dir={quoted(str(CACHE / 'runs'))}"
    meter = watched([str(PROGRAM), "run", job, "--run-id", run_id, *overrides, output], [{}])
    return RunDirectory(CACHE / "runs" / run_id), meter


def watched(command: Sequence[str], environments: Sequence[Mapping[str, str]]) -> CpuMeter:
    """Run `command` once for each environment, all at the same time, and wait for them. Raises RuntimeError
    with the end of the output if one fails.
    """
    log = CACHE / "last.log"
    with log.open("w") as file, CpuMeter(os.getpid()) as meter:
        processes = [
            subprocess.Popen(
                command, env=os.environ | own, stdin=subprocess.DEVNULL, stdout=file, stderr=file
            )
            for own in environments
        ]
        codes = [process.wait() for process in processes]
    if any(codes):
        raise RuntimeError(f"{' '.join(command)}: exit codes {codes}\n{log.read_text()[-3000:]}")
    return meter


# -- our side


def our_round(overrides: Sequence[str]) -> Round:
    """One run of our side."""
    run, meter = orchestrator_run("grpo", overrides)
    steps = [our_step(line.time_ns, line.metrics) for line in run.read_metrics() if line.step > 0]
    return warmed_up(steps, meter)


def our_step(ended_ns: int, metrics: Mapping[str, float]) -> Step:
    """Read a step from a line of metrics.jsonl."""
    return Step(
        ended_ns=ended_ns,
        step_s=metrics["time/step"],
        generate_s=metrics["time/generate"],
        tokens=round(metrics["rollout/tokens"]),
        rollouts=round(metrics["rollout/count"]),
        reward=metrics["reward/mean"],
        reward_std=metrics["reward/std"],
    )


# -- TRL's side


def install_trl() -> None:
    """Create TRL's environment if it is incomplete."""
    requirements = HERE / "trl-requirements.txt"
    done = TRL_PYTHON.parent.parent / ".installed"
    if done.exists() and done.read_text() == requirements.read_text():
        return
    print(f"installing TRL into {TRL_PYTHON.parent.parent.name}", file=sys.stderr)
    subprocess.run([sys.executable, "-m", "venv", str(TRL_PYTHON.parent.parent)], check=True)
    pip = [str(TRL_PYTHON), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    constraints = ["--constraint", str(ROOT / "requirements" / "test.txt")]
    subprocess.run([*pip, *constraints, "--requirement", str(requirements)], check=True, stdout=sys.stderr)
    done.write_text(requirements.read_text())


def trl_request(config: RunConfig, processes: int) -> dict[str, Any]:
    """The request for `trl_side.py`, equivalent to `config`."""
    cores = len(os.sched_getaffinity(0))
    return {
        "model": config.model.path,
        "prompts": str(PROMPTS),
        "output": str(CACHE / "trl-steps"),
        "steps": config.steps,
        "prompts_per_step": config.rollout.prompts_per_step,
        "group_size": config.rollout.group_size,
        "max_new_tokens": config.rollout.max_new_tokens,
        "temperature": config.rollout.temperature,
        "components": config.reward.components,
        "clip_low": config.algorithm.clip_low,
        "clip_high": config.algorithm.clip_high,
        "learning_rate": config.learner.learning_rate,
        "adam_betas": config.learner.adam_betas,
        "adam_epsilon": config.learner.adam_epsilon,
        "max_grad_norm": config.learner.max_grad_norm,
        "seed": config.seed,
        "threads": max(1, cores // processes),
        "rows_per_forward": config.rollout.prompts_per_step * config.rollout.group_size // processes,
    }


def write_prompts(config: RunConfig, path: Path) -> None:
    """Write all prompts that the run will take, in its order and in TRL's format."""
    prompts = load_prompts(config.task, config.seed).take(config.steps * config.rollout.prompts_per_step)
    chat = build_tokenizer(config.model).chat_template is not None
    rows = (
        {
            "prompt": [{"role": "user", "content": prompt.text}] if chat else prompt.text,
            "prompt_id": prompt.prompt_id,
            "reference": json.dumps(prompt.reference),
        }
        for prompt in prompts
    )
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def trl_round(request: Mapping[str, Any], processes: int) -> Round:
    """One run of TRL, data-parallel over `processes`."""
    outputs = [Path(f"{request['output']}.{rank}.jsonl") for rank in range(processes)]
    for output in outputs:
        output.unlink(missing_ok=True)
    file = CACHE / "trl-request.json"
    file.write_text(json.dumps(request))
    port = str(quiet_ports(1)[0])
    quiet = {
        "OMP_NUM_THREADS": str(request["threads"]),
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
    }
    group = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    environments = [
        quiet | (group | {"RANK": str(rank), "LOCAL_RANK": str(rank)} if processes > 1 else {})
        for rank in range(processes)
    ]
    meter = watched([str(TRL_PYTHON), str(HERE / "trl_side.py"), str(file)], environments)
    lines = [[json.loads(line) for line in output.read_text().splitlines()] for output in outputs]
    return warmed_up([trl_step(ranks) for ranks in zip(*lines, strict=True)], meter)


def trl_step(ranks: Sequence[Mapping[str, Any]]) -> Step:
    """Read a step from the lines that the processes wrote."""
    rewards = [reward for rank in ranks for reward in rank["rewards"]]
    return Step(
        ended_ns=max(rank["ended_ns"] for rank in ranks),
        step_s=(ranks[0]["ended_ns"] - ranks[0]["began_ns"]) / 1e9,
        generate_s=max(rank["generate_s"] for rank in ranks),
        tokens=sum(rank["tokens"] for rank in ranks),
        rollouts=len(rewards),
        reward=fmean(rewards),
        reward_std=pstdev(rewards),
    )


# -- both sides


def measure(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure the rows `trl` and `ours` in alternating rounds, each with its own seed."""
    CACHE.mkdir(parents=True, exist_ok=True)
    install_trl()
    demo = arguments.workload == "demo"
    model = arguments.model or (cold_start() if demo else pretrained_model(arguments.workload))
    path = (f"model.path={quoted(str(model))}", f"max_staleness={arguments.staleness}")
    stage = stage_overrides("grpo") if demo else ("model=pretrained",)
    fixed = (*path, f"steps={arguments.steps}", *SAME_FOR_BOTH, *WORKLOADS[arguments.workload], *NOT_TIMED)
    rounds: dict[str, list[Round]] = {"trl": [], "ours": []}
    for seed in range(arguments.rounds):
        overrides = (*stage, *fixed, *LAYOUT, f"seed={seed}", *arguments.overrides)
        config = compose("grpo", overrides)
        write_prompts(config, PROMPTS)
        request = trl_request(config, arguments.trl_processes)
        rounds["trl"].append(trl_round(request, arguments.trl_processes))
        rounds["ours"].append(our_round(overrides))
    return [figures(system, taken) for system, taken in rounds.items()]


def engines() -> list[dict[str, Any]]:
    """The samplers alone, on one thread: one round of `engine_vs_generate.py`."""
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    return [
        row for name in engine_vs_generate.WORKLOADS for row in engine_vs_generate.measure(name, rounds=1)
    ]


def print_table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> None:
    """Print columns under their names."""
    for line in ({column: column for column in columns}, *rows):
        print("  ".join(f"{line[column]!s:>{max(12, len(column))}}" for column in columns))


def main() -> int:
    """Measure, print and write benchmarks/results/vs_trl*.json."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="the rows trl and ours as one JSON document")
    parser.add_argument("--workload", choices=sorted(WORKLOADS), default="demo")
    parser.add_argument("--staleness", type=int, default=0, help="`max_staleness` of our side")
    parser.add_argument("--model", type=Path, help="a Hugging Face folder to start from")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument(
        "--trl-processes", type=int, default=2, help="data-parallel; the cores are shared out"
    )
    parser.add_argument("--no-engines", action="store_true", help="leave out the comparison of samplers")
    parser.add_argument("overrides", nargs="*", metavar="OVERRIDE")
    arguments = parser.parse_args()
    trl, ours = rows = measure(arguments)
    ours |= compared(trl, ours)
    samplers = [] if arguments.no_engines else engines()
    ours["engine_speedup"] = {row["model"]: row["speedup"] for row in samplers if row["system"] == "engine"}
    suffix = (
        ""
        if arguments.workload == "demo" and not arguments.staleness
        else (f"_{arguments.workload}_staleness_{arguments.staleness}")
    )
    write_result(f"vs_trl{suffix}", rows)
    if arguments.json:
        print(json.dumps(rows, indent=2))
    else:
        columns = ["system", "tokens_per_s", "step_s", "generate_s", "update_s", "reward", "reward_error"]
        print_table(rows, [*columns, "cpu_s", "tokens_per_cpu_s", "length_mean"])
        print(
            f"ours / trl: {ours['speedup']} x tokens per second,"
            f" {ours['cpu_speedup']} x tokens per CPU second,"
        )
        print(f"reward {ours['reward_difference']:+}; target {'reached' if ours['reached'] else 'MISSED'}")
        if samplers:
            print_table(
                samplers, ["model", "system", "length_mean", "tokens_per_s", "tokens_per_cpu_s", "speedup"]
            )
    return 0 if ours["reached"] else 1


if __name__ == "__main__":
    sys.exit(main())
