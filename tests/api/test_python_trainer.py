"""Training from Python: the same machine as the command, with objects where flags only name things."""

import json
import math
import signal
import subprocess
import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import ClassVar

import pytest
import torch

import unmask
from helpers.own_network import own_network
from unmask import methods, rules, tasks
from unmask.cli.main import main
from unmask.methods import SPG
from unmask.objective import Term, advantages, likelihood, losses, masks
from unmask.validation import setting

SIZES = {
    "max_steps": 2,
    "prompts": 2,
    "num_generations": 4,
    "examples": 8,
    "threads": 1,
    "save_steps": 1,
    "evaluation_examples": 4,
    "evaluation_examples_during": 2,
    "evaluation_greedy_steps": 4,
    "learning_rate": 1e-3,
}


def args_of(**changes) -> unmask.TrainingConfig:
    return unmask.TrainingConfig(**SIZES | changes)


def lively(prompts, completions, **columns):
    return [len(set(completion)) / 5 for completion in completions]


class Seen(unmask.Callback):
    """What it was told, in order."""

    def __init__(self):
        self.told = []

    def on_step(self, step, metrics):
        self.told.append(("step", step, metrics["reward"]))

    def on_evaluation(self, step, metrics):
        self.told.append(("evaluation", step, min(metrics.values())))

    def on_checkpoint(self, step, directory):
        self.told.append(("checkpoint", step, (directory / "state.json").is_file()))


@dataclass(frozen=True, kw_only=True)
class Reinforce(methods.Method):
    """Policy gradient on one-step log-probs of tokens."""

    name: ClassVar[str] = "reinforce"
    paper: ClassVar[str] = "2504.12216"
    provenance: ClassVar[str] = "paper"
    scale: float = setting(1.0, "of the loss")

    def terms(self, eos_id):
        return (
            Term(
                masking=masks.FullyMasked(),
                advantage=advantages.centered,
                likelihood=likelihood.per_token,
                surrogate=losses.PolicyGradient(),
                normalizer=likelihood.token_count,
                coefficient=self.scale,
            ),
        )


class Letters:
    """A task that is no dataclass: write a letter twice."""

    name = "letters"
    gives_pairs = False
    max_new_tokens = 16
    splits = ("train", "test")
    vocabulary = ()
    verifies = True

    def examples(self, split, count, seed):
        return tasks.Sudoku().examples(split, count, seed)

    def rewards(self, prompts, completions, **columns):
        return lively(prompts, completions)

    def well_formed(self, completion):
        return True

    def metrics(self, prompts, completions, **columns):
        return {"solved": [float(score > 0.5) for score in self.rewards(prompts, completions)]}


def weights(directory: Path) -> bytes:
    return (directory / "model.safetensors").read_bytes()


def test_trainer_is_the_command_with_other_words(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    seen = Seen()
    python = unmask.Trainer(
        "embedded:sudoku",
        method=methods.DiSPO(base=SPG()),
        sampler=unmask.Sampler(steps=4, unmasking=rules.Random()),
        args=args_of(output_dir="python", eval_steps=1),
        callbacks=[seen],
    ).train()
    flags = "--method dispo --method.base spg --rollout-unmasking random --train-max-steps 2 --rollout-prompts 2"
    flags += " --rollout-num-generations 4 --train-examples 8 --train-threads 1 --train-save-steps 1"
    flags += " --evaluation-examples 4 --evaluation-examples-during 2 --evaluation-greedy-steps 4"
    flags += " --train-learning-rate 1e-3 --train-eval-steps 1 --model embedded:sudoku --output flags"
    assert main(["train", *flags.split()]) == 0
    command = unmask.Run("flags")
    assert python.recipe == command.recipe
    assert weights(python.checkpoint) == weights(command.checkpoint)
    assert python.summary == command.summary
    assert [told[:2] for told in seen.told] == [
        *[("evaluation", 0), ("step", 1), ("evaluation", 1), ("checkpoint", 1)],
        *[("step", 2), ("checkpoint", 2), ("evaluation", 2)],
    ]
    assert all(math.isfinite(value) for _, _, value in seen.told)
    assert [row["reward"] for row in python.metrics if "reward" in row] == [seen.told[1][2], seen.told[4][2]]
    assert python.curve("drawn.png").read_bytes() == python._repr_png_()
    assert python._repr_png_().startswith(b"\x89PNG")


def test_a_shipped_method_may_be_given_by_its_name():
    by_name, by_object = unmask.Trainer(method="d2"), unmask.Trainer(method=methods.StepMerge())
    assert by_name.recipe == by_object.recipe
    assert by_name.recipe.method == methods.StepMerge()


def trainer_with_objects(output, **changes):
    """Rows, a function that only this process has, a rule and a method of one's own, a network of one's own."""
    network, tokenizer = own_network()
    sizes = {name: value for name, value in SIZES.items() if not name.startswith("evaluation_")}  # nothing is solved
    rows = [{"prompt": item.prompt, "weight": 0.5} for item in tasks.Sudoku().examples("train", 40, 0)]
    return unmask.Trainer(
        network,
        tokenizer=tokenizer,
        method=Reinforce(scale=0.5),
        reward_funcs=[lively, lambda prompts, completions, weight, **columns: weight],
        train_dataset=rows,
        sampler=unmask.Sampler(max_new_tokens=16, steps=4),
        args=unmask.TrainingConfig(**sizes | changes, output_dir=output, reward_weights=[1, 0.25]),
    )


def test_a_run_of_objects_goes_on_bit_for_bit_from_python_and_the_command_says_so(tmp_path, capsys):
    whole = trainer_with_objects(tmp_path / "whole").train()
    trainer_with_objects(tmp_path / "half", max_steps=1).train()
    half = trainer_with_objects(None).train(resume_from=tmp_path / "half")
    assert weights(half.checkpoint) == weights(whole.checkpoint)
    assert [row.get("reward") for row in half.metrics] == [row.get("reward") for row in whole.metrics]
    assert half.recipe["reward"]["funcs"].endswith("lively,python:<lambda>")
    assert (half.recipe["model"], half.recipe["task"]["data"]) == ("python:LlamaForCausalLM", "python:list")
    assert half.recipe["method"]["name"].endswith("test_python_trainer:Reinforce")
    capsys.readouterr()
    assert main(["train", "--resume", str(half.directory)]) == 2
    line = capsys.readouterr().err
    assert "an object of the Python that started the run" in line
    assert f"train(resume_from='{half.directory}')" in line
    other = trainer_with_objects(None, weight_decay=0.5)
    with pytest.raises(unmask.UserError, match=r"train.weight_decay is 0.5, and the run .* begun with 0.0"):
        other.train(resume_from=half.directory)


@pytest.mark.parametrize("lora_rank", [0, 2])
def test_a_network_of_one_s_own_is_trained_and_keeps_its_form(lora_rank, tmp_path):
    network, tokenizer = own_network()
    before = {name: weight.clone() for name, weight in network.state_dict().items()}
    config, classes = dict(vars(network.config)), [type(module) for module in network.modules()]
    run = unmask.Trainer(
        network,
        tokenizer=tokenizer,
        method=methods.CoupledGRPO(),
        train_dataset=tasks.Sudoku(),
        reward_funcs=lively,
        args=args_of(output_dir=tmp_path / "run", lora_rank=lora_rank, gradient_checkpointing=True, warmup_steps=0),
    ).train()
    after = network.state_dict()
    assert list(after) == list(before)
    assert any(not torch.equal(after[name], before[name]) for name in before)
    assert (vars(network.config), [type(module) for module in network.modules()]) == (config, classes)
    assert network.training
    assert all(weight.requires_grad for weight in network.parameters())
    assert not any("forward" in vars(module) for module in network.modules())
    saved = unmask.load_model(str(run.checkpoint)).network.state_dict()
    assert all(torch.allclose(saved[name], after[name], atol=1e-6) for name in after)


def test_a_task_that_is_a_plain_class_and_a_local_rule_are_taken_as_objects(tmp_path):
    @dataclass(frozen=True, kw_only=True)
    class Local(rules.LeftToRight):
        name: ClassVar[str] = "local"

    run = unmask.Trainer(
        "embedded:sudoku",
        method=SPG(),
        train_dataset=Letters(),
        sampler=unmask.Sampler(steps=4, unmasking=Local()),
        args=args_of(output_dir=tmp_path / "run", max_steps=1),
    ).train()
    assert run.recipe["rollout"]["unmasking"] == {"name": "python:Local"}
    assert run.summary["greedy_4"]["after"]["solved"] >= 0


def test_a_callback_ends_a_run_early_saved_and_evaluated(tmp_path):
    class Enough(unmask.Callback):
        def on_step(self, step, metrics):
            raise unmask.StopTraining("enough")

    sizes = args_of(output_dir=tmp_path / "run", max_steps=9, save_steps=9)
    run = unmask.Trainer(method=SPG(), args=sizes, callbacks=[Enough()]).train()
    assert run.summary["steps"] == 1
    assert run.checkpoint.name == "step_000001"
    longer = unmask.Trainer(method=SPG(), args=args_of(max_steps=9, save_steps=1))
    assert len([row for row in longer.train(resume_from=run.directory).metrics if "reward" in row]) == 9


def test_an_exception_of_a_callback_is_the_user_s_and_says_where(tmp_path):
    class Broken(unmask.Callback):
        def on_checkpoint(self, step, directory):
            raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine") as raised:
        unmask.Trainer(method=SPG(), args=args_of(output_dir=tmp_path / "run"), callbacks=[Broken()]).train()
    assert raised.value.__notes__ == ["raised by Broken.on_checkpoint after step 1"]


def test_the_process_is_as_it_was_after_a_run(tmp_path):
    torch.manual_seed(7)
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGURG)]
    threads, state = torch.get_num_threads(), torch.get_rng_state()

    def refuse(prompts, completions, **columns):
        raise RuntimeError("no")

    trainer = unmask.Trainer(reward_funcs=refuse, args=args_of(output_dir=tmp_path / "run", threads=2))
    with pytest.raises(RuntimeError, match="no"):
        trainer.train()
    unmask.Trainer(method=SPG(), args=args_of(output_dir=tmp_path / "run", max_steps=1, threads=2)).train()
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), state)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGURG)] == handlers


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: unmask.Trainer("embedded:sudoko"), "embedded:sudoko"),
        (lambda: unmask.Trainer(own_network()[0]), "without its tokenizer"),
        (lambda: unmask.Trainer(tokenizer=own_network()[1]), "tokenizer is given"),
        (lambda: unmask.Trainer(train_dataset=Letters()), "no embedded model knows task 'letters'"),
        (lambda: unmask.Trainer(train_dataset="gsm8l"), "gsm8l"),
        (lambda: unmask.Trainer(train_dataset="sudoku", eval_dataset=[{"prompt": "1"}]), "eval_dataset is given"),
        (lambda: unmask.Trainer(reward_funcs=[3]), "reward_funcs holds 3"),
        (lambda: unmask.Trainer(reward_funcs=[lively], args=args_of(reward_weights=[1, 2])), "one weight for each"),
        (
            lambda: unmask.Trainer(args=args_of(lora_alpha=8)),
            "train.lora_alpha would not be read: train.lora_rank is 0",
        ),
        (
            lambda: unmask.Trainer(args=args_of(max_completion_length=8), sampler=unmask.Sampler(max_new_tokens=4)),
            "give one",
        ),
        (lambda: unmask.Trainer(method=methods.JustGRPO()), "left"),
        (lambda: unmask.Trainer(method="difu-grpo"), "method is 'difu-grpo': perhaps you meant 'diffu-grpo', or an"),
        (lambda: unmask.TrainingConfig(max_steps=0), "train.max_steps is 0"),
        (lambda: unmask.Trainer.from_recipe("sudoku-dispo", {"train.max_stepz": 3}), "train.max-steps"),
        (lambda: unmask.Run("nowhere"), "no recipe.toml"),
    ],
)
def test_mistakes_are_user_errors_of_one_line(call, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(unmask.UserError, match=message) as raised:
        call().train()
    assert "\n" not in str(raised.value)
    assert not any(tmp_path.iterdir())


BLOCKS = """
import unmask
from unmask import methods, rules

def my_function(prompts, completions, **columns):
    return [len(set(completion)) / 5 for completion in completions]

trainer = unmask.Trainer(
    model="embedded:arithmetic", method=methods.DiSPO(base=methods.SPG()),
    reward_funcs=[my_function], train_dataset=[{"prompt": f"{n}+3+4+5="} for n in range(1, 9)],
    eval_dataset=[{"prompt": "9+9+9+9="}],
    sampler=unmask.Sampler(max_new_tokens=16, block_length=8, steps=4, unmasking=rules.LowConfidence()),
    args=unmask.TrainingConfig(num_generations=4, num_iterations=2, learning_rate=1e-5, lora_rank=4, max_steps=2))
run = trainer.train(); run.curve()
print(run.directory, run.recipe["reward"]["funcs"])
"""


@pytest.mark.long
def test_a_script_in_an_empty_directory_does_what_the_docs_say(tmp_path):
    (tmp_path / "mine.py").write_text(BLOCKS)
    command = [sys.executable, "-W", "error", "mine.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "runs/dispo-dataset-001 python:my_function"
    assert json.loads((tmp_path / "runs/dispo-dataset-001/summary.json").read_text())["steps"] == 2


def test_training_config_and_sampler_have_every_setting_of_a_training_run_and_no_other():
    """What flags can, Python can, and the other way round: see test_every_setting for the values."""
    from unmask.settings.reader import leaves
    from unmask.settings.recipe import Recipe

    prefixes = {"train.": "", "rollout.": "", "reward.": "reward_", "evaluation.": "evaluation_", "chat.": "chat_"}
    prefixes |= {"report.": "report_", "track": "track"}
    wanted = {
        prefix + leaf.path.removeprefix(table)
        for leaf in leaves(Recipe())
        for table, prefix in prefixes.items()
        if leaf.path.startswith(table)
    }
    found = {each.name for kind in (unmask.TrainingConfig, unmask.Sampler) for each in fields(kind)}
    assert found - wanted == {"output_dir", "max_completion_length"}  # --output; another word for max_new_tokens
    assert wanted - found == {"reward_funcs"}  # of Trainer itself
