import dataclasses
import itertools
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from scaleot_core.compression.builders import BUILDERS
from scaleot_core.compression.builders.gradot import (
    build,
    channel_scores,
    keep_best_components,
    kept_components,
    plan_gradot,
    removal_scores,
)
from scaleot_core.compression.curvature import Curvature, measure_curvature
from scaleot_core.compression.emulator import Emulator, describe_emulator, read_emulator, write_emulator
from scaleot_core.compression.plan import LayerRole, PlannedLayer, RankTarget
from scaleot_core.compression.rank import ProjectionBlock, kept_rank, projection_weight
from scaleot_core.errors import ModelError
from scaleot_core.models.loading import LanguageModel
from scaleot_core.progress import SilentReporter
from tests.compression.builders.requests import emulator_request, random_blocks, text_alone
from tests.support.tiny_models import FAMILY_CONFIGS, tiny_language_model

BLOCKS = torch.randint(3, 300, (4, 9), generator=torch.Generator().manual_seed(1))
ONE_PREDICTION_EACH = torch.tensor([[7, 30], [7, 31], [7, 200], [7, 31]])
"""Four blocks alike but for the token to predict."""
PLACE = ProjectionBlock(0, "some_projection")
ADAPTER = frozenset({0, 5})


def built(full: LanguageModel, target: RankTarget, beta: float, *, loss_increase_weight: float = 1.0) -> Emulator:
    request = emulator_request(
        adapter=ADAPTER,
        removed_rank_share=beta,
        rank_target=target,
        loss_increase_weight=loss_increase_weight,
        batch_size=2,
    )
    return build(full, request, text_alone(BLOCKS), reporter=SilentReporter())


def around(linear: nn.Linear, x: Tensor, targets: Tensor) -> tuple[Curvature, Tensor]:
    """The curvature around a classifier's only layer, and its explicit Hessian over the weights, row by row."""
    inputs, output_gradients = torch.zeros(3, 3), torch.zeros(4, 4)
    for token, target in zip(x, targets, strict=True):
        logits = linear(token)
        gradient = torch.autograd.grad(nn.functional.cross_entropy(logits, target), logits)[0]
        inputs += torch.outer(token, token) / len(x)
        output_gradients += torch.outer(gradient, gradient) / len(x)
    gradient = torch.autograd.grad(nn.functional.cross_entropy(linear(x), targets), linear.weight)[0]
    return Curvature(inputs, output_gradients, gradient), torch.kron(output_gradients, inputs)


def tiny_layer(tokens: int) -> tuple[nn.Linear, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    linear = nn.Linear(3, 4)
    linear.weight.data = torch.randn(4, 3, generator=generator)
    linear.bias.data = torch.randn(4, generator=generator)
    x = torch.randn(tokens, 3, generator=generator)
    return linear, x, torch.randint(0, 4, (tokens,), generator=generator)


def tiny_parts(count: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(4)
    return torch.randn(4, count, generator=generator), torch.randn(3, count, generator=generator)


def literal_score(hessian: Tensor, gradient: Tensor, change: Tensor, loss_increase_weight: float) -> float:
    """GradOT's score of a change of the weights, with the whole matrix of second derivatives."""
    shift = (hessian @ change.flatten()).abs().sum()
    return float(shift - loss_increase_weight * (gradient * change).sum())


def mean_fisher(gradients: Tensor) -> Tensor:
    """From the gradients (tokens, out, in) of every token's own loss."""
    rows = gradients.flatten(1)
    return sum((torch.outer(row, row) for row in rows), torch.zeros(rows.shape[1], rows.shape[1])) / len(rows)


@pytest.mark.parametrize("weight", [0.0, 1.0, 50.0])
def test_the_score_equals_the_literal_formula_on_a_tiny_layer(weight: float) -> None:
    linear, x, targets = tiny_layer(tokens=6)
    curvature, hessian = around(linear, x, targets)
    u, s, vh = torch.linalg.svd(linear.weight.detach(), full_matrices=False)
    got = removal_scores(curvature, u * s, vh.T, weight)
    for k in range(3):
        change = -s[k] * torch.outer(u[:, k], vh[k])
        expected = literal_score(hessian, curvature.gradient, change, weight)
        assert float(got[k]) == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_for_one_token_the_curvature_is_the_exact_fisher_matrix_of_autograd() -> None:
    linear, x, targets = tiny_layer(tokens=1)
    curvature, _ = around(linear, x, targets)
    gradient = torch.autograd.grad(nn.functional.cross_entropy(linear(x), targets), linear.weight)[0]
    fisher = torch.outer(gradient.flatten(), gradient.flatten())
    left, right = tiny_parts(5)
    got = removal_scores(curvature, left, right, 2.0)
    for k in range(5):
        expected = literal_score(fisher, gradient, -torch.outer(left[:, k], right[:, k]), 2.0)
        assert float(got[k]) == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_for_tokens_that_pair_every_input_with_every_slope_it_is_so_too() -> None:
    """The two are independent then, and the mean of the products is the product of the means."""
    linear, inputs, _ = tiny_layer(tokens=3)
    slopes = torch.randn(5, 4, generator=torch.Generator().manual_seed(6))
    gradients = torch.stack(
        [
            torch.autograd.grad(torch.dot(slope, linear(token)), linear.weight)[0]
            for token, slope in itertools.product(inputs, slopes)
        ]
    )
    curvature = Curvature(inputs.T @ inputs / 3, slopes.T @ slopes / 5, gradients.mean(0))
    fisher = mean_fisher(gradients)
    left, right = tiny_parts(5)
    got = removal_scores(curvature, left, right, 2.0)
    for k in range(5):
        expected = literal_score(fisher, gradients.mean(0), -torch.outer(left[:, k], right[:, k]), 2.0)
        assert float(got[k]) == pytest.approx(expected, rel=1e-4, abs=1e-6)


def gradient_of_every_token(full: LanguageModel, linear: nn.Module) -> Tensor:
    """(tokens, out, in): each of ``ONE_PREDICTION_EACH`` run and differentiated alone."""
    gradients = []
    linear.weight.requires_grad_(True)
    for block in ONE_PREDICTION_EACH:
        logits = full.model(block[None, :1], use_cache=False).logits[0, 0]
        loss = nn.functional.cross_entropy(logits, block[1])
        gradients.append(torch.autograd.grad(loss, linear.weight)[0])
    linear.weight.requires_grad_(False)
    return torch.stack([gradient.T if full.layout.family.transposed else gradient for gradient in gradients])


def curvatures_of_layer_2(full: LanguageModel, names: tuple[str, ...]) -> dict[ProjectionBlock, Curvature]:
    return measure_curvature(
        full, ONE_PREDICTION_EACH, layers=(2,), names=names, batch_size=3, reporter=SilentReporter()
    )


@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
@pytest.mark.parametrize("weight", [0.0, 100.0])
def test_in_a_model_the_scores_of_components_are_those_of_autograds_fisher_matrix(
    model_type: str, weight: float
) -> None:
    """All tokens reach a map as the same input, so that the factors are exact; each has a gradient of its own."""
    full = tiny_language_model(model_type)
    names = (full.layout.attention_linears[-1], full.layout.mlp_linears[-1])
    curvatures = curvatures_of_layer_2(full, names)
    for name in names:
        linear = full.layout.layer(full.model, 2).get_submodule(name)
        gradients = gradient_of_every_token(full, linear)
        fisher = mean_fisher(gradients)
        u, s, vh = torch.linalg.svd(projection_weight(linear), full_matrices=False)
        got = removal_scores(curvatures[ProjectionBlock(2, name)], u * s, vh.T, weight)
        for k in range(len(s)):
            change = -s[k] * torch.outer(u[:, k], vh[k])
            expected = literal_score(fisher, gradients.mean(0), change, weight)
            assert float(got[k]) == pytest.approx(expected, rel=1e-3, abs=1e-5), (name, k)


@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
@pytest.mark.parametrize("weight", [0.0, 100.0])
def test_in_a_model_the_scores_of_channels_are_those_of_autograds_fisher_matrices(
    model_type: str, weight: float
) -> None:
    full = tiny_language_model(model_type)
    names = full.layout.mlp_linears
    curvatures = curvatures_of_layer_2(full, names)
    maps, expected = [], torch.zeros(64 if model_type == "gpt2" else 24)
    for name in names:
        linear = full.layout.layer(full.model, 2).get_submodule(name)
        exact = projection_weight(linear)
        gradients = gradient_of_every_token(full, linear)
        fisher = mean_fisher(gradients)
        for channel in range(len(expected)):
            removed = (slice(None), channel) if name == names[-1] else (channel, slice(None))
            change = torch.zeros_like(exact)
            change[removed] = -exact[removed]
            expected[channel] += literal_score(fisher, gradients.mean(0), change, weight)
        maps.append((exact, curvatures[ProjectionBlock(2, name)]))
    torch.testing.assert_close(channel_scores(maps[:-1], maps[-1], weight), expected, rtol=1e-3, atol=1e-4)


def test_lambda_rewards_what_raises_the_loss() -> None:
    """The second term is the derivative of the loss as the part is taken away, and lowers the score."""
    linear, x, targets = tiny_layer(tokens=6)
    curvature, _ = around(linear, x, targets)
    left, right = tiny_parts(2)
    taken = removal_scores(curvature, left, right, 0.0) - removal_scores(curvature, left, right, 1.0)
    for k in range(2):
        share = torch.zeros((), requires_grad=True)
        weight = linear.weight.detach() - share * torch.outer(left[:, k], right[:, k])
        loss = nn.functional.cross_entropy(x @ weight.T + linear.bias.detach(), targets)
        slope = torch.autograd.grad(loss, share)[0]
        assert float(taken[k]) == pytest.approx(float(slope), rel=1e-4, abs=1e-6)


def test_a_channel_scores_the_sum_over_the_matrices_it_runs_through() -> None:
    generator = torch.Generator().manual_seed(5)

    def random_map(rows: int, columns: int) -> tuple[Tensor, Curvature]:
        x, g = torch.randn(20, columns, generator=generator), torch.randn(20, rows, generator=generator)
        weight = torch.randn(rows, columns, generator=generator)
        return weight, Curvature(x.T @ x / 20, g.T @ g / 20, g.T @ x / 20)

    gate, up, down = random_map(6, 3), random_map(6, 3), random_map(4, 6)
    got = channel_scores([gate, up], down, 3.0)
    for channel in range(6):
        expected = 0.0
        for weight, curvature in (gate, up, down):
            change = torch.zeros_like(weight)
            rows = (slice(None), channel) if weight is down[0] else (channel, slice(None))
            change[rows] = -weight[rows]
            hessian = torch.kron(curvature.output_gradients, curvature.inputs)
            expected += literal_score(hessian, curvature.gradient, change, 3.0)
        assert float(got[channel]) == pytest.approx(expected, rel=1e-4)


def diagonal(*values: float) -> Tensor:
    return torch.diag(torch.tensor(values, dtype=torch.float32))


@pytest.mark.parametrize(
    ("loss_increase_weight", "expected"),
    [
        (0.0, diagonal(4, 0, 0, 1)),  # scores 0, 3, 2, 10: the first stays as one of the top 5 %, then the last
        (1.0, diagonal(4, 3, 0, 0)),  # scores 0, 18, 2, 10: without the second the loss would fall by 3 * 5
    ],
)
def test_the_kept_components_are_those_worked_out_by_hand(loss_increase_weight: float, expected: Tensor) -> None:
    curvature = Curvature(torch.eye(4), diagonal(0, 1, 1, 10), diagonal(0, 5, 0, 0))
    factorize = keep_best_components({PLACE: curvature}, loss_increase_weight)
    up, down = factorize(PLACE, diagonal(4, 3, 2, 1), 2)
    assert (up.shape, down.shape) == ((4, 2), (2, 4))
    torch.testing.assert_close(up @ down, expected)


@pytest.mark.parametrize(
    ("count", "rank", "always"),
    [(40, 10, [0, 1]), (41, 10, [0, 1, 2]), (4, 1, [0]), (100, 3, [0, 1, 2]), (100, 50, [0, 1, 2, 3, 4])],
)
def test_the_top_components_always_stay(count: int, rank: int, always: list[int]) -> None:
    """The scores rise, so that without them only the last would stay; the 5 % are rounded up."""
    kept = kept_components(torch.arange(float(count)), rank).tolist()
    assert kept == [*always, *range(count - rank + len(always), count)]


@pytest.mark.parametrize(
    ("target", "kept"),
    [
        (RankTarget.ATTENTION, PlannedLayer(1, LayerRole.KEPT, kept_rank_share=0.25)),
        (RankTarget.FEED_FORWARD, PlannedLayer(1, LayerRole.KEPT, kept_channel_share=0.25)),
        (RankTarget.BOTH, PlannedLayer(1, LayerRole.KEPT, kept_rank_share=0.25, kept_channel_share=0.25)),
    ],
)
def test_the_plan_takes_beta_from_what_the_target_names(target: RankTarget, kept: PlannedLayer) -> None:
    plan = plan_gradot(3, {0, 2}, removed_rank_share=0.75, rank_target=target)
    assert plan.layers == (PlannedLayer(0, LayerRole.ADAPTER), kept, PlannedLayer(2, LayerRole.ADAPTER))


def test_a_share_outside_zero_to_one_is_refused() -> None:
    with pytest.raises(ModelError, match="removed_rank_share"):
        plan_gradot(3, {0}, removed_rank_share=1.1, rank_target=RankTarget.BOTH)


@pytest.mark.parametrize("model_type", FAMILY_CONFIGS)
def test_every_family_is_built_written_and_read(model_type: str, tmp_path: Path) -> None:
    full = tiny_language_model(model_type)
    before, state = full.model(BLOCKS).logits, {k: v.clone() for k, v in full.model.state_dict().items()}
    emulator = built(full, RankTarget.BOTH, 0.7)
    assert emulator.plan.adapter_layers == (0, 5)
    assert emulator.plan.indices(LayerRole.KEPT) == (1, 2, 3, 4)
    assert describe_emulator(emulator, full).size_share < 1.0
    write_emulator(emulator, tmp_path)
    read = read_emulator({path.name: path for path in tmp_path.iterdir()}, device=torch.device("cpu"))
    assert torch.equal(read.model(BLOCKS).logits, emulator.model(BLOCKS).logits)
    assert not torch.allclose(emulator.model(BLOCKS).logits, before)
    assert torch.equal(full.model(BLOCKS).logits, before)
    assert all(torch.equal(tensor, state[name]) for name, tensor in full.model.state_dict().items())
    for model in (full.model, emulator.model):
        assert not any(parameter.requires_grad or parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("target", RankTarget)
def test_the_emulator_holds_the_best_scored_components_and_channels(target: RankTarget) -> None:
    """In one layer: the query against the literal formula, the channels against their scores."""
    full = tiny_language_model("llama")
    names = (*full.layout.attention_linears, *full.layout.mlp_linears)
    curvatures = measure_curvature(
        full, BLOCKS, layers=range(1, 5), names=names, batch_size=2, reporter=SilentReporter()
    )
    emulator = built(full, target, 0.75, loss_increase_weight=100.0)
    exact, got = full.layout.layer(full.model, 2), full.layout.layer(emulator.model, 2)

    query = "self_attn.q_proj"
    weight = projection_weight(exact.get_submodule(query))
    expected = weight
    if target is not RankTarget.FEED_FORWARD:
        expected = literal_best(weight, curvatures[ProjectionBlock(2, query)], kept_rank(16, 16, 0.25), 100.0)
    torch.testing.assert_close(got.get_submodule(query)(torch.eye(16)).T, expected, rtol=1e-4, atol=1e-4)

    maps = [(projection_weight(exact.get_submodule(n)), curvatures[ProjectionBlock(2, n)]) for n in names[4:]]
    scores = channel_scores(maps[:2], maps[2], 100.0).tolist()
    count = 24 if target is RankTarget.ATTENTION else 6
    best = sorted(sorted(range(24), key=lambda channel: -scores[channel])[:count])
    assert torch.equal(got.get_submodule("mlp.up_proj").weight, exact.get_submodule("mlp.up_proj").weight[best])
    assert torch.equal(got.get_submodule("mlp.down_proj").weight, exact.get_submodule("mlp.down_proj").weight[:, best])


def test_only_as_much_text_is_read_as_was_asked_for() -> None:
    full, blocks = tiny_language_model("llama"), random_blocks(8)

    def logits(num_blocks: int, text: Tensor) -> Tensor:
        request = emulator_request(
            adapter=ADAPTER, removed_rank_share=0.75, rank_target=RankTarget.BOTH, num_blocks=num_blocks
        )
        return build(full, request, text_alone(text), reporter=SilentReporter()).model(BLOCKS).logits

    assert torch.equal(logits(4, blocks), logits(4, blocks[:4]))
    assert not torch.equal(logits(4, blocks), logits(8, blocks))


def literal_best(weight: Tensor, curvature: Curvature, rank: int, loss_increase_weight: float) -> Tensor:
    u, s, vh = torch.linalg.svd(weight, full_matrices=False)
    hessian = torch.kron(curvature.output_gradients, curvature.inputs)
    parts = [s[k] * torch.outer(u[:, k], vh[k]) for k in range(len(s))]
    scores = [literal_score(hessian, curvature.gradient, -part, loss_increase_weight) for part in parts]
    rest = sorted(range(1, len(s)), key=lambda k: -scores[k])  # 5 % of 16, rounded up, is the first alone
    return sum((parts[k] for k in [0, *rest[: rank - 1]]), torch.zeros_like(weight))


@pytest.mark.parametrize("target", RankTarget)
def test_a_share_of_nothing_changes_nothing_and_reads_no_text(target: RankTarget) -> None:
    full = tiny_language_model("llama")

    def asks_for_text() -> Tensor:
        raise AssertionError("there is nothing to choose")

    public = dataclasses.replace(text_alone(BLOCKS), blocks=asks_for_text)
    request = emulator_request(adapter=ADAPTER, removed_rank_share=0.0, rank_target=target)
    emulator = build(full, request, public, reporter=SilentReporter())
    assert torch.equal(emulator.model(BLOCKS).logits, full.model(BLOCKS).logits)
    assert describe_emulator(emulator, full).verbatim_share == 1.0


def test_gradot_stands_in_the_table_of_builders() -> None:
    assert BUILDERS["gradot"] is build
