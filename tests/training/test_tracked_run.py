"""A run with `--track`: the tracker has every number of metrics.jsonl, over an interruption too."""

import math
import shlex

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from unmask.cli.main import main
from unmask.report.metrics import read_metrics

QUICK = shlex.split(
    "--rollout.prompts 2 --rollout.num-generations 2 --train.max-steps 2 --train.examples 4 --train.threads 1 "
    "--evaluation.examples 4 --evaluation.greedy-steps 4 --track tensorboard"
)


def numbers(rows):
    """Numbers by a tracker's name and step."""
    return {
        (key if key.startswith("eval/") else f"train/{key}", row["step"]): value
        for row in rows
        for key, value in row.items()
        if key != "step" and isinstance(value, int | float) and math.isfinite(value)
    }


def test_a_run_that_goes_on_has_every_number_of_metrics_jsonl_in_its_tracker(tmp_path):
    run = tmp_path / "run"
    assert main(["train", *QUICK, "--output", str(run)]) == 0
    assert main(["train", "--resume", str(run), "--train.max-steps", "3"]) == 0
    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    found = {(tag, event.step): event.value for tag in events.Tags()["scalars"] for event in events.Scalars(tag)}
    wanted = numbers(read_metrics(run / "metrics.jsonl"))
    assert wanted.keys() <= found.keys()
    # The shorter run's last evaluation, which the longer one does not make.
    assert all(tag.startswith("eval/") and step == 2 for tag, step in found.keys() - wanted.keys())
    assert all(math.isclose(found[key], wanted[key], rel_tol=1e-6) for key in wanted)
    assert "completions/text_summary" in events.Tags()["tensors"]
    assert events.Images("curve")
