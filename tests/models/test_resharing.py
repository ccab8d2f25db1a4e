"""From one share rule to another: means when entering, the same function when leaving."""

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from models import GPTConfig, ModelConfig, OffsetGrid, ViTConfig, build_model
from models.ablations.pair_grid import PairGrid
from models.initial import initialise
from models.resharing import adapt_bank, adapt_state, entry_sources, refuse_other_nets

RULES = ["none", "log", "log(1.5)", "log(4)", "clip(2)", "clip(0)"]
VIT: dict[str, Any] = {"image_size": [40, 24], "patch_size": 8, "channels": 1, "classes": 5, "width": 8}
GPT: dict[str, Any] = {"vocabulary": 11, "tokens": 13, "width": 8, "tie_embeddings": True}
SMALL: dict[str, Any] = {"depth": 2, "mlp": 16}


def vit(
    share: str, pool: str = "cls", image_size: Any = None, position: Any = None, **changes: Any
) -> ViTConfig:
    mixer = {"kind": "translution", "heads": 2, "head_dim": 4, "share": share, **changes}
    own = {"image_size": image_size or VIT["image_size"], "position": position}
    return ViTConfig.model_validate(VIT | SMALL | own | {"pool": pool, "mixer": mixer})


def gpt(share: str, **changes: Any) -> GPTConfig:
    mixer = {"kind": "translution", "heads": 2, "head_dim": 4, "share": share, **changes}
    return GPTConfig.model_validate(GPT | SMALL | {"mixer": mixer})


def logits(config: ModelConfig, state: dict[str, torch.Tensor]) -> torch.Tensor:
    net = build_model(config)
    missing = net.load_state_dict(state, strict=False).missing_keys
    assert set(missing) <= {"head.weight"}  # tied
    generator = torch.Generator().manual_seed(1)
    if isinstance(config, ViTConfig):
        return net(torch.randn(3, 1, 40, 24, generator=generator)).detach()
    return net(torch.randint(11, (3, 13), generator=generator)).detach()


def drawn(config: ModelConfig) -> dict[str, torch.Tensor]:
    net = build_model(config)
    initialise(net, 7)
    return {name: p.detach() for name, p in net.named_parameters()}


@given(
    st.sampled_from(RULES), st.sampled_from(RULES), st.sampled_from([(5, 3), (9,), (2, 3, 2)]), st.booleans()
)
def test_every_new_entry_is_the_mean_of_the_old_ones_over_its_offsets(old, new, shape, cls):
    before, after = (OffsetGrid(shape, class_token=cls, share=rule) for rule in (old, new))
    bank = torch.randn(before.num_entries, 2, 3, dtype=torch.float64)
    expected: dict[int, list[torch.Tensor]] = {}
    for delta in itertools.product(*(range(1 - n, n) for n in shape)):
        expected.setdefault(after.entry(delta), []).append(bank[before.entry(delta)])
    if cls:
        for entry, source in zip(after.special_entries, before.special_entries, strict=True):
            expected.setdefault(entry, []).append(bank[source])
    means = torch.stack([torch.stack(expected[entry]).mean(0) for entry in range(after.num_entries)])
    sources = entry_sources(before, after)
    assert torch.allclose(adapt_bank(bank, sources), means, atol=1e-14)
    some = range(0, after.num_entries, 2)
    assert torch.allclose(adapt_bank(bank, sources, some), means[::2], atol=1e-14)
    assert sum(counts.total() for counts in sources) == after.num_offsets


@pytest.mark.parametrize(
    ("make", "chain"),
    [
        (vit, ["log", "log(1.5)", "none"]),
        (vit, ["clip(0)", "clip(1)", "clip(2)", "none"]),
        (gpt, ["log(4)", "log", "log(1.5)", "none"]),
    ],
)
@pytest.mark.parametrize("changes", [{}, {"rank": 2}, {"relative": "qv"}], ids=str)
def test_a_finer_rule_has_the_same_logits(make, chain, changes):
    configs = [make(rule, **changes) for rule in chain]
    state = drawn(configs[0])
    first = logits(configs[0], state)
    for coarse, fine in itertools.pairwise(configs):
        unfolded = adapt_state(coarse, fine, state)
        assert torch.allclose(logits(fine, unfolded), first, atol=1e-6)
        back = adapt_state(fine, coarse, unfolded)  # the mean of equal matrices
        assert all(torch.allclose(back[name], tensor, atol=1e-7) for name, tensor in state.items())
        state = unfolded
    assert sum(p.numel() for p in state.values()) > sum(p.numel() for p in drawn(configs[0]).values())


def test_the_same_rule_copies_bit_by_bit():
    state = drawn(vit("log"))
    adapted = adapt_state(vit("log"), vit("log(2)", memory="keep"), state)
    assert all(torch.equal(adapted[name], tensor) for name, tensor in state.items())


def test_a_net_of_stages_can_leave_its_rule_in_some_layers():
    mixer = vit("none").mixer.model_dump()
    stages = [{"layers": 1}, {"layers": 1, "mixer": mixer}]
    values = {"mlp": 16, "mixer": vit("log").mixer.model_dump(), "stages": stages}
    staged = ViTConfig.model_validate(VIT | values)
    state = drawn(vit("log"))
    adapted = adapt_state(vit("log"), staged, state)
    assert torch.allclose(logits(staged, adapted), logits(vit("log"), state), atol=1e-6)
    banks = [adapted[f"layers.{layer}.mixer.q_bank"] for layer in (0, 1)]
    assert [len(bank) for bank in banks] == [state["layers.0.mixer.q_bank"].shape[0], 9 * 5 + 3]


@pytest.mark.parametrize(
    ("other", "line"),
    [
        (vit("log", heads=4), "model.mixer.heads is 2 there and 4 here"),
        (vit("log", heads=4, head_dim=2), "model.mixer.heads is 2 there and 4 here"),
        (vit("log", rank=2), "model.mixer.rank is None there and 2 here"),
        (vit("log", "mean"), "model.pool is cls there and mean here"),
        (vit("log").model_copy(update={"width": 16}), "model.width is 8 there and 16 here"),
        (vit("log").model_copy(update={"depth": 3}), "model.depth is 2 there and 3 here"),
        (vit("log").model_copy(update={"patch_size": 4}), "model.patch_size is 8 there and 4 here"),
        (gpt("log"), "model.kind is vit there and gpt here"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_another_net_is_refused_with_the_key_and_both_values(other, line):
    with pytest.raises(ValueError) as error:  # noqa: PT011 (compared below)
        refuse_other_nets(vit("none"), other)
    assert str(error.value).startswith(line)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("scattered", [False, True])
def test_entries_of_pairs_are_copied_and_fit_no_other_grid(scattered: bool):
    grid = PairGrid((2, 3), class_token=True, scattered=scattered)
    bank = torch.randn(grid.num_entries, 2, 2)
    assert torch.equal(adapt_bank(bank, entry_sources(grid, grid)), bank)
    with pytest.raises(ValueError, match="entries are those of pairs"):
        entry_sources(grid, PairGrid((3, 3), class_token=True, scattered=scattered))


def test_grids_of_other_tokens_are_refused():
    with pytest.raises(ValueError, match="differ in more than"):
        entry_sources(OffsetGrid((3, 4)), OffsetGrid((12,), share="log"))


@pytest.mark.parametrize("share", ["none", "log"])
@pytest.mark.parametrize("sides", [((5, 3), (8, 7)), ((8, 7), (5, 3)), ((5, 7), (8, 3))])
def test_a_grid_grows_by_the_nearest_offset_and_is_cropped(sides, share: str):
    old, new = (vit(share, image_size=[8 * rows, 8 * columns]) for rows, columns in sides)
    before, after = (net.token_grid.offsets(share) for net in (old, new))
    adapted = adapt_state(old, new, drawn(old))
    name = "layers.0.mixer.v_bank"
    for delta in ((0, 0), (-1, 2), (2, -2), (7, 6), (-7, -6)):
        if any(abs(d) >= n for d, n in zip(delta, after.shape, strict=True)):
            continue
        near = tuple(max(1 - n, min(d, n - 1)) for d, n in zip(delta, before.shape, strict=True))
        if share == "none" or near == delta:
            assert torch.equal(adapted[name][after.entry(delta)], drawn(old)[name][before.entry(near)])
    build_model(new).load_state_dict(adapted)


@pytest.mark.parametrize("relative", ["qkv", "q", "v"])
@pytest.mark.parametrize("share", ["none", "log"])
@pytest.mark.parametrize("kind", [vit, gpt])
def test_self_attention_becomes_translution_with_the_same_logits(kind, share: str, relative: str):
    plain = {"kind": "attention", "heads": 2, "head_dim": 4}
    values = kind(share, relative=relative).model_dump(mode="json") | {"position": {"kind": "learned"}}
    new, old = (type(kind(share)).model_validate(values | changes) for changes in ({}, {"mixer": plain}))
    state = drawn(old)
    adapted = adapt_state(old, new, state)
    assert torch.allclose(logits(new, adapted), logits(old, state), atol=1e-6)


def test_what_depends_on_the_number_of_tokens_is_refused_by_name():
    old, new = (vit("none", image_size=size, position="learned") for size in ([40, 24], [48, 24]))
    with pytest.raises(ValueError, match=r"position.* there and .* here, which cannot be adapted"):
        adapt_state(old, new, drawn(old))
    alpha = vit("none", position="learned", rank=2)
    plain = type(alpha).model_validate(
        alpha.model_dump(mode="json") | {"mixer": {"kind": "attention", "heads": 2, "head_dim": 4}}
    )
    with pytest.raises(ValueError, match=r"mixer\.kind is attention there and translution here"):
        refuse_other_nets(plain, alpha)
