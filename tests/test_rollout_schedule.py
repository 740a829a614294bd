"""Which completions are sampled together, where they are generated, and where they are trained on."""

import itertools

import pytest

from posttrain.errors import UserError
from posttrain.rollout.schedule import PromptOrder, Schedule, make_schedule


def made(**changes: int | None) -> Schedule:
    given = dict(
        num_generations=4,
        per_device=8,
        accumulation=2,
        generation_batch_size=None,
        steps_per_generation=None,
        num_iterations=1,
        world_size=1,
        rank=0,
    )
    return make_schedule(**(given | changes))  # type: ignore[arg-type]


def test_unset_a_generation_is_an_optimizer_step() -> None:
    schedule = made()
    assert (schedule.steps, schedule.num_completions, schedule.num_prompts) == (2, 16, 4)
    assert made(steps_per_generation=6).num_completions == 48
    assert made(generation_batch_size=32).steps == 4
    assert made(num_iterations=3).batches_per_generation == 6


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_every_completion_is_generated_once_and_trained_on_once(world_size: int) -> None:
    ranks = [made(per_device=8 // world_size, world_size=world_size, rank=rank) for rank in range(world_size)]
    everything = list(range(16))
    assert [one for rank in ranks for one in rank.generated_here(16)] == everything
    # 7 completions, as when groups are sampled anew: shares differ by one at most.
    assert [one for rank in ranks for one in rank.generated_here(7)] == everything[:7]
    assert max(len(rank.generated_here(7)) for rank in ranks) - min(len(rank.generated_here(7)) for rank in ranks) <= 1
    # The same ones stand in the same step, however many processes there are.
    by_step = [[one for rank in ranks for one in rank.trained_here(step)] for step in range(2)]
    assert by_step == [everything[:8], everything[8:]]


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"per_device": 6, "accumulation": 1}, "no multiple of num_generations 4.*--steps_per_generation 2"),
        (
            {"generation_batch_size": 20},
            "generation_batch_size 20 is no multiple of per_device_train_batch_size 8.* 16",
        ),
        ({"per_device": 3, "world_size": 2, "accumulation": 1}, "3 × 2 processes × 1 micro-batches are 6 completions"),
        ({"steps_per_generation": 3}, "3 micro-batches, and an optimizer step takes 2"),
    ],
)
def test_numbers_that_do_not_fit_are_told(changes: dict[str, int], text: str) -> None:
    with pytest.raises(UserError, match=text):
        made(**changes)


def test_prompts_come_in_a_new_order_each_time_round() -> None:
    order = PromptOrder(5, seed=1)
    rounds = [[order.row(5 * number + place) for place in range(5)] for number in range(6)]
    assert all(sorted(one) == [0, 1, 2, 3, 4] for one in rounds)
    assert len({tuple(one) for one in rounds}) > 3
    again = PromptOrder(5, seed=1)
    assert [again.row(cursor) for cursor in (29, 3, 12)] == [rounds[5][4], rounds[0][3], rounds[2][2]]
    assert [PromptOrder(5, seed=2).row(place) for place in range(5)] != rounds[0]
    assert list(itertools.islice(map(PromptOrder(3, None).row, itertools.count()), 7)) == [0, 1, 2, 0, 1, 2, 0]
