"""The language net has the paper's sizes, sees no future, and takes any mixer."""

import pytest
import torch

from models import GPTConfig, build_model

ATTENTION = {"kind": "attention", "heads": 2, "head_dim": 4}
TRANSLUTION = {"kind": "translution", "heads": 2, "head_dim": 4}
NETS = {
    "attention": {"mixer": ATTENTION},
    "attention-rope": {"mixer": ATTENTION, "position": "rope"},
    "translution": {"mixer": TRANSLUTION},
    "translution-rope-v": {"mixer": {**TRANSLUTION, "relative": "v"}, "position": "rope"},
    "translution-shared": {"mixer": {**TRANSLUTION, "share": "log"}},
    "alpha": {"mixer": {**TRANSLUTION, "rank": 2}},
    "hybrid": {"stages": [{"mixer": TRANSLUTION, "layers": 1}, {"mixer": ATTENTION, "layers": 1}]},
}


@pytest.mark.parametrize(
    ("mixer", "millions"),
    [
        ({"kind": "attention"}, 22.0),
        ({"kind": "translution", "rank": 8}, 23.7),
        ({"kind": "translution"}, 127.5),
    ],
)
def test_parameter_counts_are_the_papers(mixer, millions):
    with torch.device("meta"):
        model = build_model(GPTConfig.model_validate({"mixer": mixer}))
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 1) == millions


def tiny(**changes):
    torch.manual_seed(0)
    net = {"vocabulary": 11, "tokens": 7, "width": 8, "depth": 2, "mlp": 16}
    return build_model(GPTConfig(**{**net, **changes}))


@pytest.mark.parametrize("net", NETS)
def test_a_later_token_changes_no_earlier_logit(net):
    model = tiny(**NETS[net]).double().eval()
    ids = torch.randint(11, (2, 7))
    logits = model(ids)
    assert logits.shape == (2, 7, 11)
    for changed in range(7):
        other = ids.clone()
        other[:, changed] = (other[:, changed] + 1) % 11
        difference = (model(other) - logits).abs().amax((0, 2))
        assert difference[:changed].sum() < 1e-12
        assert (difference[changed:] > 1e-9).all()  # and every later one: the net is connected


@pytest.mark.parametrize("net", NETS)
def test_the_order_of_earlier_tokens_matters(net):
    model = tiny(**NETS[net]).double().eval()
    one, other = torch.tensor([[1, 2, 3, 4, 5, 6, 7]]), torch.tensor([[1, 3, 2, 4, 5, 6, 7]])
    assert (model(one)[0, -1] - model(other)[0, -1]).abs().max() > 1e-9


def test_only_nets_blind_to_positions_learn_embeddings():
    assert tiny(mixer=TRANSLUTION).positions is None
    assert tiny(mixer=ATTENTION).positions.shape == (1, 7, 8)
    assert tiny(mixer=ATTENTION, position="rope").positions is None


def test_tied_embeddings_are_one_parameter():
    tied, untied = (tiny(mixer=TRANSLUTION, tie_embeddings=tie) for tie in (True, False))
    assert tied.get_parameter("head.weight") is tied.get_parameter("embedding.weight")
    sizes = [sum(p.numel() for p in model.parameters()) for model in (tied, untied)]
    assert sizes[1] - sizes[0] == 11 * 8


def test_ids_of_another_length_are_refused():
    with pytest.raises(ValueError, match=r"\[batch, 7\] is needed"):
        tiny()(torch.zeros(1, 8, dtype=torch.long))
