"""Slow, literal transcriptions of the paper's algorithms, to compare the project's own with."""

import copy
import math

import torch
from torch import Tensor, nn

from scaleot_core.compression.importance import ImportanceSettings
from scaleot_core.models.loading import LanguageModel
from scaleot_core.seeds import generator_for


class LiteralHarmonizer(nn.Module):
    """h(x) = x + W_up relu(W_down x), written as matrix products."""

    def __init__(self, down: Tensor, up: Tensor, returns_tuple: bool) -> None:
        super().__init__()
        self.down, self.up, self.returns_tuple = down, up, returns_tuple

    def forward(self, x: Tensor, *args: object, **kwargs: object) -> Tensor | tuple[Tensor, None]:
        y = x + (x @ self.down.T).clamp(min=0) @ self.up.T
        return (y, None) if self.returns_tuple else y


class DynamicLayerReplace:
    """The pseudo-code of stage 1, one line after the other, on a copy of the model for every forward."""

    def __init__(self, full: LanguageModel, blocks: Tensor, settings: ImportanceSettings) -> None:
        self.full, self.settings = full, settings
        self.num_layers = full.layout.num_layers
        order = torch.randperm(len(blocks), generator=generator_for(settings.seed, "split")).tolist()
        count = max(1, len(blocks) // 10)
        self.d_v = [blocks[i] for i in order[:count]]
        self.d_t = [blocks[i] for i in order[count:]]
        self.scores = [0.0] * self.num_layers
        self.policy = generator_for(settings.seed, "policy")
        self.downs, self.ups = self._start()
        self.m = {id(p): torch.zeros_like(p) for p in self.parameters()}
        self.v = {id(p): torch.zeros_like(p) for p in self.parameters()}
        self.updates = {id(p): 0 for p in self.parameters()}

    def _start(self) -> tuple[list[Tensor], list[Tensor]]:
        hidden, rank = self.full.layout.hidden_size, self.settings.harmonizer_rank
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(generator_for(self.settings.seed, "harmonizers").initial_seed())
            downs = []
            for _ in range(self.num_layers):
                downs.append(nn.Linear(hidden, rank, bias=False).weight.detach().requires_grad_())
                nn.Linear(rank, hidden, bias=False)  # the way up draws too, before it is set to zero
        return downs, [torch.zeros(hidden, rank, requires_grad=True) for _ in range(self.num_layers)]

    def parameters(self) -> list[Tensor]:
        return [*self.downs, *self.ups]

    def sample(self) -> set[int]:
        if self.settings.regroup == "random":
            order = torch.randperm(self.num_layers, generator=self.policy).tolist()
        else:
            order = list(range(self.num_layers))
        uniform = torch.rand(self.num_layers, generator=self.policy).tolist()
        pi = [u / (1 + math.exp(-s)) for u, s in zip(uniform, self.scores, strict=True)]
        replaced: set[int] = set()
        size = self.settings.group_size
        groups = [order[start : start + size] for start in range(0, self.num_layers, size)]
        if len(groups) > 1 and len(groups[-1]) == 1:  # ours: the paper's counts leave no layer alone
            groups[-2:] = [groups[-2] + groups[-1]]
        for group in groups:
            for layer in group:
                smaller = sum(pi[other] < pi[layer] for other in group)
                if smaller < len(group) // 2:
                    replaced.add(layer)
        return replaced

    def loss(self, replaced: set[int], batch: Tensor) -> Tensor:
        model = copy.deepcopy(self.full.model)
        for layer in replaced:
            stand_in = LiteralHarmonizer(self.downs[layer], self.ups[layer], self.full.layout.family.returns_tuple)
            self.full.layout.replace_layer(model, layer, stand_in)
        logits = model(input_ids=batch, use_cache=False).logits
        total, count = torch.zeros(()), 0
        for row in range(batch.shape[0]):
            for position in range(batch.shape[1] - 1):
                log_probabilities = logits[row, position] - logits[row, position].exp().sum().log()
                total = total - log_probabilities[batch[row, position + 1]]
                count += 1
        return total / count

    def train_step(self, step: int, batch: Tensor) -> float:
        loss = self.loss(self.sample(), batch)
        parameters = self.parameters()
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        norm = math.sqrt(sum(float((g**2).sum()) for g in gradients if g is not None))
        rate = self.settings.harmonizer_learning_rate * (1 + math.cos(math.pi * (step - 1) / self.settings.steps)) / 2
        for parameter, gradient in zip(parameters, gradients, strict=True):
            if gradient is not None:  # AdamW touches the harmonizers that were used, and no other
                self._adamw(parameter, gradient * min(1.0, 1.0 / (norm + 1e-6)), rate)
        return float(loss.detach())

    def _adamw(self, parameter: Tensor, gradient: Tensor, rate: float) -> None:
        key = id(parameter)
        self.updates[key] += 1
        t = self.updates[key]
        self.m[key] = 0.9 * self.m[key] + 0.1 * gradient
        self.v[key] = 0.999 * self.v[key] + 0.001 * gradient**2
        m, v = self.m[key] / (1 - 0.9**t), self.v[key] / (1 - 0.999**t)
        with torch.no_grad():
            parameter.mul_(1 - rate * 0.01)
            parameter.sub_(rate * m / (v.sqrt() + 1e-8))

    def score_step(self, batch: Tensor) -> list[float]:
        candidates: list[set[int]] = []
        while len(candidates) < self.settings.candidates:
            drawn = self.sample()
            if drawn not in candidates:
                candidates.append(drawn)
        gains = [math.exp(-float(self.loss(candidate, batch).detach())) for candidate in candidates]
        mean = sum(gains) / len(gains)
        before = list(self.scores)
        for candidate, gain in zip(candidates, gains, strict=True):
            for layer in range(self.num_layers):
                if layer not in candidate:
                    p = 1 / (1 + math.exp(-before[layer]))
                    self.scores[layer] += self.settings.score_learning_rate * (gain - mean) * p * (1 - p)
        return self.scores


class OffsiteTuningDistillation:
    """Offsite-tuning's distillation as its authors run it: the full middle reads what the emulator's middle read.

    For an adapter at both ends, the middle being the layers ``first`` to ``last``. AdamW, gradient clipping and the
    cosine are written out.
    """

    def __init__(self, full: LanguageModel, dropped: nn.Module, kept: list[int], first: int, last: int) -> None:
        self.full, self.student, self.first, self.last = full, copy.deepcopy(dropped), first, last
        layers = [full.layout.layer(self.student, index) for index in kept]
        self.parameters = [p.requires_grad_() for layer in layers for p in layer.parameters()]
        self.m = [torch.zeros_like(p) for p in self.parameters]
        self.v = [torch.zeros_like(p) for p in self.parameters]

    def loss(self, ids: Tensor, weight: float) -> Tensor:
        seen: dict[str, object] = {}
        enters = self.full.layout.layer(self.student, self.first)
        leaves = self.full.layout.layer(self.student, self.last)
        hooks = [
            enters.register_forward_pre_hook(
                lambda _, args, kwargs: seen.update(call=(args, kwargs)), with_kwargs=True
            ),
            leaves.register_forward_hook(lambda _, args, output: seen.update(output=output)),
        ]
        logits = self.student(input_ids=ids, use_cache=False).logits
        for hook in hooks:
            hook.remove()
        (h, *args), kwargs = seen["call"]
        with torch.no_grad():
            for index in range(self.first, self.last + 1):
                h = self.full.layout.layer(self.full.model, index)(h, *args, **kwargs)
        rms = math.sqrt(float((h**2).mean()))
        language = nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
        return language + weight * (((h - seen["output"]) / rms) ** 2).mean()

    def step(self, number: int, steps: int, ids: Tensor, weight: float, learning_rate: float) -> float:
        loss = self.loss(ids, weight)
        grads = torch.autograd.grad(loss, self.parameters)
        norm = math.sqrt(sum(float((g**2).sum()) for g in grads))
        rate = learning_rate * (1 + math.cos(math.pi * (number - 1) / steps)) / 2
        with torch.no_grad():
            for p, g, m, v in zip(self.parameters, grads, self.m, self.v, strict=True):
                clipped = g * min(1.0, 1.0 / (norm + 1e-6))
                m.mul_(0.9).add_(clipped, alpha=0.1)
                v.mul_(0.999).add_(clipped**2, alpha=0.001)
                p.sub_(rate * (m / (1 - 0.9**number)) / ((v / (1 - 0.999**number)).sqrt() + 1e-8))
        return float(loss.detach())
