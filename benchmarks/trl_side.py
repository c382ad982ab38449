"""The TRL side of `vs_trl.py`: one process of a GRPO training by TRL's own trainer, step by step.

    .venv-trl/bin/python benchmarks/trl_side.py REQUEST.json

It runs in TRL's environment, so it only imports the rewards from this repository. With RANK and WORLD_SIZE in
the environment, several processes train data-parallel over gloo, as with `accelerate launch`. Each process
writes `<request.output>.<rank>.jsonl` with one line per step.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

from datasets import Dataset  # pyright: ignore[reportMissingImports] - TRL's environment has it
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from trl import GRPOConfig, GRPOTrainer  # pyright: ignore[reportMissingImports]

from orchestrator.training.records import Finish, Prompt
from orchestrator.training.rewards.completion import Completion
from orchestrator.training.rewards.scorers import load_scorer
from orchestrator.training.rewards.scoring import ScorerSet


class StepLog(TrainerCallback):
    """Writes one line per step, from the end of the previous step to the end of this one:
    data, sampling, rewards, update.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._began_ns = time.time_ns()
        self._generate_s = 0.0
        self._tokens = 0
        self._rewards: list[float] = []

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Begin the first step."""
        del args, state, control, kwargs
        self._began_ns = time.time_ns()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Write the step that ended, and begin the next one."""
        del args, control, kwargs
        ended_ns = time.time_ns()
        line = {
            "step": state.global_step,
            "began_ns": self._began_ns,
            "ended_ns": ended_ns,
            "generate_s": self._generate_s,
            "tokens": self._tokens,
            "rewards": self._rewards,
        }
        with self._path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        self._began_ns, self._generate_s, self._tokens, self._rewards = ended_ns, 0.0, 0, []

    def time_generate(self, model: PreTrainedModel) -> None:
        """Count the time inside `model.generate`."""
        generate: Callable[..., Any] = getattr(model, "generate")  # noqa: B009  (a mixin that types don't show)

        def timed(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
            began = time.perf_counter()
            try:
                return generate(*args, **kwargs)
            finally:
                self._generate_s += time.perf_counter() - began

        object.__setattr__(model, "generate", timed)

    def rewarded(self, rewards: Sequence[float], tokens: int) -> None:
        """Record the input of the reward function."""
        self._rewards += rewards
        self._tokens += tokens


def text_of(messages: Any) -> str:  # noqa: ANN401
    """The text of a prompt or a completion: a list of one message if the model has a chat template."""
    return messages if isinstance(messages, str) else messages[0]["content"]


def reward_function(components: Mapping[str, float], max_new_tokens: int, log: StepLog) -> Callable[..., Any]:
    """The scorers of this repository, weighted as in the config, with the signature that TRL calls."""
    scorers = ScorerSet({name: load_scorer(name) for name in components})

    def rule_based(
        prompts: Sequence[Any],
        completions: Sequence[Any],
        completion_ids: Sequence[Sequence[int]],
        prompt_id: Sequence[str],
        reference: Sequence[str],
        **kwargs: object,
    ) -> list[float]:
        del kwargs
        rewards: list[float] = []
        for text, completion, ids, name, answer in zip(
            map(text_of, prompts),
            map(text_of, completions),
            completion_ids,
            prompt_id,
            reference,
            strict=True,
        ):
            finish = Finish.LENGTH if len(ids) == max_new_tokens else Finish.STOP
            prompt = Prompt(name, text, json.loads(answer))
            scored = Completion(prompt, completion, len(ids), finish, max_new_tokens)
            (outcome,) = scorers.score_now([scored])
            rewards.append(
                sum(w * value for w, value in zip(components.values(), outcome.components, strict=True))
            )
        log.rewarded(rewards, sum(len(ids) for ids in completion_ids))
        return rewards

    return rule_based


def grpo_config(request: Mapping[str, Any], world_size: int) -> Any:  # noqa: ANN401
    """The same algorithm, without any option that takes time but does not change the result."""
    rows = request["prompts_per_step"] * request["group_size"] // world_size
    return GRPOConfig(
        output_dir=f"{request['output']}.scratch",
        max_steps=request["steps"],
        per_device_train_batch_size=request["rows_per_forward"],
        gradient_accumulation_steps=rows // request["rows_per_forward"],
        num_generations=request["group_size"],
        max_completion_length=request["max_new_tokens"],
        temperature=request["temperature"],
        top_p=1.0,
        top_k=0,
        num_iterations=1,
        beta=0.0,
        epsilon=request["clip_low"],
        epsilon_high=request["clip_high"],
        loss_type="dapo",  # the token-level loss over the whole batch
        scale_rewards="group",
        learning_rate=request["learning_rate"],
        lr_scheduler_type="constant",
        warmup_steps=0,
        adam_beta1=request["adam_betas"][0],
        adam_beta2=request["adam_betas"][1],
        adam_epsilon=request["adam_epsilon"],
        weight_decay=0.0,
        max_grad_norm=request["max_grad_norm"],
        optim="adamw_torch_fused",
        shuffle_dataset=False,
        seed=request["seed"],
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        use_vllm=False,
        dataloader_pin_memory=False,
        ddp_find_unused_parameters=False,  # experts are rows of one tensor, which always has a gradient
        logging_strategy="no",
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )


def main() -> None:
    """Train and write one line per step."""
    request: dict[str, Any] = json.loads(Path(sys.argv[1]).read_text())
    rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    torch.set_num_threads(request["threads"])
    model = AutoModelForCausalLM.from_pretrained(request["model"], local_files_only=True, dtype=torch.float32)
    prompts = [json.loads(line) for line in Path(request["prompts"]).read_text().splitlines()]
    log = StepLog(Path(f"{request['output']}.{rank}.jsonl"))
    log.time_generate(model)
    trainer = GRPOTrainer(
        model=model,
        processing_class=AutoTokenizer.from_pretrained(request["model"], local_files_only=True),
        reward_funcs=reward_function(request["components"], request["max_new_tokens"], log),
        args=grpo_config(request, world_size),
        train_dataset=Dataset.from_list(prompts),
        callbacks=[log],
    )
    trainer.train()


if __name__ == "__main__":
    main()
