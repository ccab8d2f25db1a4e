"""Generation with caches gives the logits of the whole net, for every mixer that has a causal form."""

from typing import Any

import pytest
import torch
from pydantic import TypeAdapter

from models import GPT, ModelConfig, build_model
from models.decoding import offset_rows
from models.decoding.generation import CachedNet, Choice, generate, recomputed_mixers
from models.initial import initialise
from trainer.verify.nets import NETS, TEXT, net_named

OWN = {
    "full": {},
    "values": {"relative": "v"},
    "keys and queries": {"relative": "qk", "share": "clip(3)"},
    "log": {"share": "log", "kernel": "loop", "memory": "keep"},
    "one matrix": {"share": "clip(0)"},
    "alpha": {"rank": 3},
    "alpha, log": {"rank": 3, "relative": "kv", "share": "log(1.5)"},
    "alpha, queries": {"rank": 2, "relative": "q"},
}
TEXTS = [name for name, net in NETS.items() if net["kind"] == "gpt"]
WITHOUT_CACHE = {
    "rwkv": ["TimeMix", "ChannelMix"],
    "tost-text": ["TokenStatistics"],
    "combiner-text": ["Combiner"],
    "combiner-axial": ["Combiner"],
    "combiner-mixture": ["Combiner"],
    "structure-text": ["Structure"],
}


def net_of(name: str, dtype: torch.dtype = torch.float64) -> GPT:
    values: dict[str, Any] = {"kind": "translution", "heads": 2, "head_dim": 8} | OWN.get(name, {})
    position = "rope" if name == "values" else "learned" if name == "alpha" else None
    own = TEXT | {"mixer": values, "position": position}
    config = TypeAdapter(ModelConfig).validate_python(own) if name in OWN else net_named(name)
    net = build_model(config).to(dtype).eval()
    assert isinstance(net, GPT)
    initialise(net, seed=0)
    torch.manual_seed(0)
    for parameter in net.parameters():  # initial values of zero would hide a mistake
        parameter.data += 0.1 * torch.randn_like(parameter)
    return net


@torch.no_grad()
def worst_difference(net: GPT, first: int) -> float:
    """Of the logits of a net given `first` tokens, then one at a time, from those of whole sequences."""
    ids = torch.randint(net.config.vocabulary, (2, net.config.tokens))
    whole, cached, worst = net(ids), CachedNet(net), 0.0
    for start, stop in [(0, first), *((n, n + 1) for n in range(first, net.config.tokens))]:
        logits = cached.logits(ids[:, start:stop])
        worst = max(worst, float((logits - whole[:, stop - 1]).abs().max()))
    return worst


@pytest.mark.parametrize("name", [*OWN, *TEXTS])
def test_cached_logits_are_those_of_the_whole_net(name: str):
    net = net_of(name)
    for first in (1, 5, net.config.tokens):
        assert worst_difference(net, first) < 1e-10
    assert recomputed_mixers(net) == WITHOUT_CACHE.get(name, [])


@pytest.mark.parametrize("name", ["rope-text", "alpha", "full"])
def test_in_float32_they_are_equal_to_1e_5(name: str):
    assert worst_difference(net_of(name, torch.float32), 5) < 1e-5


@pytest.mark.parametrize(("name", "rows"), [("full", 16), ("log", 5), ("one matrix", 1)])
@torch.no_grad()
def test_a_token_projects_one_row_per_entry_in_use(name: str, rows: int, monkeypatch: pytest.MonkeyPatch):
    """16 tokens: 16 offsets; with `log` 0 | 1 | 2 3 | 4 … 7 | 8 … 15."""
    net, seen = net_of(name), []
    product = torch.bmm
    monkeypatch.setattr(
        offset_rows.torch, "bmm", lambda left, right: seen.append(len(left)) or product(left, right)
    )
    cached = CachedNet(net)
    cached.logits(torch.zeros(1, 15, dtype=torch.long))
    seen.clear()  # the first tokens at once use it too
    cached.logits(torch.zeros(1, 1, dtype=torch.long))
    assert seen == 4 * [rows]  # keys and values of two layers


@pytest.mark.parametrize("cached", [True, False])
def test_a_full_context_goes_on_with_its_second_half(cached: bool):
    net = net_of("log")
    most_probable = Choice(0, None, net.config.vocabulary)
    ids = [3, *generate(net, [3], most_probable, 0, 30, cached)]
    assert len(ids) == 31
    N = net.config.tokens
    again = generate(net, ids[N + 1 - N // 2 : N + 1], most_probable, 0, N // 2 + 1, not cached)
    assert ids[N + 1 : N + 1 + N // 2 + 1] == list(again)


def test_a_choice_keeps_to_its_words_and_its_seed():
    logits = torch.tensor([1.0, 3.0, 2.0, 9.0])

    def draws(temperature: float, top_k: int | None, seed: int = 0) -> list[int]:
        generator = torch.Generator().manual_seed(seed)
        return [Choice(temperature, top_k, 3).draw(logits, generator) for _ in range(200)]

    assert set(draws(0, None)) == {1}  # 3 is no word of the vocabulary
    assert set(draws(1, 1)) == {1}
    assert set(draws(1, 2)) == {1, 2}
    assert set(draws(5, None)) == {0, 1, 2}
    assert draws(1, None) == draws(1, None) != draws(1, None, seed=1)
