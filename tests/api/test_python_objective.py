"""A loop of one's own: its gradients are the trainer's, and what is handed in stays as it is."""

from dataclasses import replace

import pytest
import torch

import unmask
from helpers.long import long_unless
from helpers.own_network import own_network
from unmask import methods, rules
from unmask.methods import METHODS
from unmask.settings.reader import build
from unmask.settings.recipe import Recipe, TrainSettings
from unmask.tasks import Sudoku
from unmask.training.build import build_trainer
from unmask.training.given import Given
from unmask.training.update import Updater

STEP, SEED = 3, 5
HOT = 3.0  # a temperature at which completions of a group differ
TASK = Sudoku()


def ones(prompts, completions, **columns):
    return [text.count("1") / 16 for text in completions]


def recipe_of(method: methods.Method, **sampler) -> Recipe:
    rollout = {"prompts": 3, "num_generations": 4, "temperature": HOT} | sampler
    rollout |= {"unmasking": {"name": method.unmasking}} if method.unmasking else {}
    evaluation = {"examples": 2, "examples_during": 2}
    document = {"method": {"name": method.name}, "rollout": rollout, "evaluation": evaluation}
    recipe = build(Recipe, document | {"reward": {"funcs": "python:ones"}})
    sizes = {"num_iterations": 2, "examples": 8, "threads": 1, "micro_batch": 5}
    return replace(recipe, train=TrainSettings(**sizes, seed=SEED, learning_rate=1e-3))


def gradients_of_the_trainer(recipe: Recipe, monkeypatch) -> tuple[list[list[torch.Tensor]], list[int], list[str]]:
    """Those of each update of one training step, the numbers of its prompts, and their texts."""
    trainer, found = build_trainer(recipe, given=Given(reward_functions={"python:ones": ones})), []
    backward = Updater._backward

    def recorded(updater, update_batches):
        result = backward(updater, update_batches)
        found.append([weight.grad.clone() for weight in updater.objective.denoiser.parameters()])
        return result

    monkeypatch.setattr(Updater, "_backward", recorded)
    trainer.step(STEP)
    examples = trainer.source.examples
    numbers = examples.numbered(trainer._prompts_of(STEP))
    return found, numbers, [examples.items[index] for index in examples.indices(numbers)]


@pytest.mark.parametrize("name", long_unless({"dispo", "mdpo", "vrpo", "d2", "lfpo"}, METHODS))
def test_gradients_are_the_trainer_s_bit_for_bit(name, monkeypatch):
    method = METHODS[name]()
    recipe = recipe_of(method, steps=16 if method.unmasking else 4)
    wanted, numbers, items = gradients_of_the_trainer(recipe, monkeypatch)
    model = unmask.load_model("embedded:sudoku")
    objective = unmask.Objective(method, model, micro_batch=5)
    steps, rule = recipe.rollout.steps, recipe.rollout.unmasking
    sampler = unmask.Sampler(max_new_tokens=16, steps=steps, temperature=HOT, unmasking=rule)
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.train.learning_rate_at(STEP), betas=(0.9, 0.99))
    optimizer.param_groups[0]["weight_decay"] = 0.0
    rows = [{"prompt": item.prompt, **item.columns} for item in items]
    batch = sampler.sample(model, rows, 4, seed=(SEED, STEP), record=objective.record, numbers=numbers)
    updates = objective.prepare(batch, objective.score(batch, ones), updates=2)
    for update, gradients in zip(updates, wanted, strict=True):
        for loss in objective.losses(update, micro_batch=5):
            loss.backward()
        assert all(torch.equal(weight.grad, grad) for weight, grad in zip(model.parameters(), gradients, strict=True))
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.train.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()


def test_a_loop_of_one_s_own_learns_with_a_dataloader_and_an_optimizer():
    model = unmask.load_model("embedded:sudoku")
    objective = unmask.Objective(methods.TraceRL(), model)
    sampler = unmask.Sampler(max_new_tokens=16, steps=4, temperature=HOT)
    rows = [{"prompt": item.prompt, "length": 16} for item in TASK.examples("train", 8, 0)]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)

    def of_length(prompts, completions, length, **columns):
        assert length == [16] * len(prompts)
        return ones(prompts, completions)

    loader, earned, measured = torch.utils.data.DataLoader(rows, batch_size=4), [], set()
    for _ in range(5):
        for prompts in loader:
            batch = sampler.sample(model, prompts, num_samples=4, seed=(0, 0), record=objective.record)
            earned.append(objective.score(batch, of_length))
            for update in objective.prepare(batch, earned[-1]):
                for loss in objective.losses(update, micro_batch=4):
                    loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                measured |= set(objective.metrics)
    assert earned[-1].completions.mean() > earned[1].completions.mean() + 0.2
    assert measured >= {"loss", "clip_ratio", "approx_kl"}


def test_a_network_and_a_tokenizer_of_one_s_own_stay_as_they_are():
    network, tokenizer = own_network()
    network.train()
    before = dict(vars(network.config)), {name: weight.clone() for name, weight in network.state_dict().items()}
    classes = [type(module) for module in network.modules()]
    model = unmask.load_model(network, tokenizer)
    objective = unmask.Objective(methods.SPG(), model)
    batch = unmask.Sampler(max_new_tokens=8, steps=4).sample(model, ["12"], 4, record=objective.record)
    for update in objective.prepare(batch, [1.0, 0.0, 0.5, 0.0]):
        for loss in objective.losses(update):
            loss.backward()
    assert model.network is network
    assert network.training
    assert all(module.training for module in network.modules())
    assert vars(network.config) == before[0]
    assert [type(module) for module in network.modules()] == classes
    assert not any("forward" in vars(module) for module in network.modules())
    assert all(torch.equal(weight, before[1][name]) for name, weight in network.state_dict().items())


def test_samples_do_not_depend_on_their_neighbours():
    model, sampler = unmask.load_model("embedded:sudoku"), unmask.Sampler(max_new_tokens=16)
    prompts = [item.prompt for item in TASK.examples("test", 3, 0)]
    all_three = sampler.sample(model, prompts, 2, seed=(1, 7), numbers=[4, 9, 2])
    alone = sampler.sample(model, prompts[1:2], 2, seed=(1, 7), numbers=[9])
    assert alone.completions == all_three.completions[2:4]
    assert all_three.prompts == [prompt for prompt in prompts for _ in range(2)]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda model: unmask.Sampler(steps=4).sample(model, ["1"]), "max_new_tokens is unset"),
        (lambda model: unmask.Sampler(max_new_tokens=16).sample(model, "1"), "give a list"),
        (lambda model: unmask.Sampler(max_new_tokens=16).sample(model, [{"question": "1"}]), "no column 'prompt'"),
        (lambda model: unmask.Sampler(max_new_tokens=16).sample(model, ["1", "2"], numbers=[3, 3]), "distinct"),
        (lambda model: unmask.Sampler(max_new_tokens=16, steps=0), "rollout.steps is 0"),
        (lambda model: unmask.load_model(model.network), "without its tokenizer"),
        (lambda model: unmask.load_model("embedded:sudoku", model.tokenizer), "tokenizer .* would not be read"),
        (lambda model: unmask.load_model("nowhere"), "nowhere"),
    ],
)
def test_mistakes_are_user_errors_of_one_line(call, message):
    with pytest.raises(unmask.UserError, match=message) as raised:
        call(unmask.load_model("embedded:sudoku"))
    assert "\n" not in str(raised.value)


def test_prepare_refuses_rewards_that_are_too_few_or_of_no_guesses():
    model = unmask.load_model("embedded:sudoku")
    sampler = unmask.Sampler(max_new_tokens=16, unmasking=rules.Random())
    batch = sampler.sample(model, [TASK.examples("test", 1, 0)[0].prompt], 4)
    with pytest.raises(unmask.UserError, match="3 rewards of 4 completions"):
        unmask.Objective(methods.SPG(), model).prepare(batch, [1.0, 2.0, 3.0])
    with pytest.raises(unmask.UserError, match=r"record=objective\.record"):
        unmask.Objective(methods.MDPO(), model).prepare(batch, [1.0, 2.0, 3.0, 4.0])
