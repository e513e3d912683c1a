import torch

from scaleot_core.federation.behaviour import Flag, flags_of, sketch_of
from scaleot_core.federation.product import product_step_norm
from tests.support.updates import random_state

SHAPES = {"1.q_proj.lora_A": (8, 300), "1.q_proj.lora_B": (300, 8)}
BASE = random_state(0, SHAPES)


def flat(state: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([(state[name] - BASE[name]).double().flatten() for name in SHAPES])


def moved(number: int, share: float = 1.0) -> dict[str, torch.Tensor]:
    own, common = random_state(number, SHAPES), random_state(99, SHAPES)
    return {name: BASE[name] + share * own[name] + (1 - share) * common[name] for name in SHAPES}


def cosine(one: torch.Tensor, other: torch.Tensor) -> float:
    return float(one @ other / (one.norm() * other.norm()))


def test_sketches_tell_cosines_and_those_near_one_to_the_fifth_digit() -> None:
    for seed in range(5):
        for share in (1.0, 0.5, 0.04, 0.02, 0.0):
            one, other = moved(1, share), moved(2, share)
            told = cosine(sketch_of(one, BASE, seed=seed), sketch_of(other, BASE, seed=seed))
            exact = cosine(flat(one), flat(other))
            assert abs(told - exact) < 0.08 * (1 - exact) ** 0.5 + 1e-9
            if exact > 0.99:
                assert abs(told - exact) < 1e-4


def test_a_step_along_a_single_number_is_no_copy_of_one_along_another() -> None:
    one, other = dict(BASE), dict(BASE)
    one["1.q_proj.lora_A"] = BASE["1.q_proj.lora_A"].clone()
    other["1.q_proj.lora_B"] = BASE["1.q_proj.lora_B"].clone()
    one["1.q_proj.lora_A"][0, 0] += 1
    other["1.q_proj.lora_B"][0, 0] += 1
    told = [cosine(sketch_of(one, BASE, seed=s), sketch_of(other, BASE, seed=s)) for s in range(200)]
    assert sum(abs(value) > 0.999 for value in told) <= 2, "one of 4096 buckets, by chance"


def test_nobody_alone_and_nobody_among_equals_is_flagged() -> None:
    steps = {"a": sketch_of(moved(1), BASE, seed=1)}
    assert flags_of(steps, None) == {} and flags_of({}, None) == {}
    assert flags_of({**steps, "b": steps["a"]}, None) == {"a": (Flag.COPY,), "b": (Flag.COPY,)}


def test_the_norm_of_a_products_step_is_that_of_the_dense_matrices() -> None:
    state = moved(3)
    dense = {
        name: one["1.q_proj.lora_B"].double() @ one["1.q_proj.lora_A"].double()
        for name, one in (("state", state), ("base", BASE))
    }
    exact = float((dense["state"] - dense["base"]).norm())
    assert abs(product_step_norm(state, BASE) - exact) < 1e-9 * exact
    assert (
        product_step_norm(BASE, BASE) < 1e-4
        and product_step_norm({"w": state["1.q_proj.lora_A"]}, {"w": BASE["1.q_proj.lora_A"]}) == 0
    )
