"""What a run does when its numbers are none: it stops before a step would spoil the weights, and says why.

With fp16, whose gradients overflow now and then, the loss scaler skips such a step and tries a smaller scale. That is
counted and shown, and ends the run when it does not stop.
"""

from pathlib import Path

from trainers.processes.distributed import World
from trainers.training.checkpoints import newest_checkpoint
from trainers.training.state import TrainState

MOST_SKIPS = 50
"""Steps that fp16's scaler may skip in a row. From its highest usual scale, 2^24, it has fallen to 2^-26 then."""
SHOWN = 20
"""Examples that a message lists."""


def not_finite(state: TrainState, world: World, folder: Path) -> FloatingPointError:
    """The error of a step whose gradient is not finite. Every process calls this, at the same step: gradients are
    averaged, so all of them have found it. The weights are those before the step."""
    return FloatingPointError(
        f"{_found(state, world)} The weights are as they were before this step. Look at these examples; lower "
        f"--learning-rate, add --warmup, or use --precision fp32. {_checkpoint(folder, world)}"
    )


def count_skip(state: TrainState, world: World, folder: Path) -> None:
    """Count a step that fp16's scaler has skipped; every process calls this, at the same step.

    Raises:
        FloatingPointError: it is one too many.
    """
    state.skipped += 1
    state.skipped_in_row += 1
    if state.skipped_in_row >= MOST_SKIPS:
        raise FloatingPointError(
            f"fp16 has skipped {state.skipped_in_row} steps in a row, and its loss scale has fallen to "
            f"{state.scaler.get_scale():.3g}: nothing is learnt so. {_found(state, world)} Use --precision bf16 or "
            f"fp32, or lower --learning-rate. {_checkpoint(folder, world)}"
        )


def check_some_step(state: TrainState) -> None:
    """Refuse a training that ends without having changed a weight.

    Raises:
        FloatingPointError: fp16's scaler has skipped every step.
    """
    if state.step and state.skipped_in_row == state.step:
        raise FloatingPointError(
            f"fp16 has skipped all {state.step} steps, for no gradient was finite: nothing was learnt. Use --precision "
            "bf16 or fp32; with fp16, its loss scale needs some steps to settle, so train longer."
        )


def _found(state: TrainState, world: World) -> str:
    """What is not finite, when, on which process, and of which examples."""
    when = f"in step {state.step + 1} (epoch {state.epoch + 1})"
    bad = [(loss.item(), examples) for examples, loss in state.step_losses if not loss.isfinite()]
    shares = world.gather([(value, [int(index) for index in examples]) for value, examples in bad])
    found = [(rank, value, examples) for rank, share in enumerate(shares) for value, examples in share]
    if found:
        places = "; ".join(f"rank {rank} has {value} for {_listed(examples)}" for rank, value, examples in found[:4])
        return f"The loss is not finite {when}: {places}."
    batches = world.gather([int(index) for examples, _ in state.step_losses for index in examples])
    places = "; ".join(f"rank {rank} had {_listed(examples)}" for rank, examples in enumerate(batches[:4]))
    return f"The gradient is not finite {when}, though the loss is: {places}."


def _listed(examples: list[int]) -> str:
    """Examples by their place in the training data."""
    more = f" and {len(examples) - SHOWN} more" if len(examples) > SHOWN else ""
    return f"training examples {', '.join(map(str, examples[:SHOWN]))}{more} (counted from 0)"


def _checkpoint(folder: Path, world: World) -> str:
    """Where the run can be taken up, if anywhere."""
    newest = world.from_main(lambda: newest_checkpoint(folder))
    if newest is None:
        return "There is no checkpoint yet."
    return f"The newest checkpoint, {newest}, is from before it; --resume auto goes on from there."
