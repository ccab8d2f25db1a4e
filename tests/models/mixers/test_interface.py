"""A config may name a mixer of the user's own; what a mixer declares is enough to build, cut and count it."""

import pytest
import torch
from pydantic import ValidationError

from models import GPTConfig, TokenGrid, ViTConfig, build_model
from models.initial import initialise
from models.mixers.attention import AttentionConfig
from models.mixers.cost import Load, Sizes
from models.mixers.measured_cost import measured_cost
from models.mixers.translution import TranslutionConfig
from models.positions.learned import NoPosition
from models.positions.rope import RotatedAttend
from parallel.engine.build import check_trainable
from parallel.errors import UserError
from parallel.mesh import Mesh, ParallelConfig
from parallel.sharding.parallelize import parallelize
from tests.toy_mixer import RelativeValues, RelativeValuesConfig

TOY = {"kind": "tests.toy_mixer:RelativeValuesConfig", "heads": 2, "head_dim": 4}
SMALL = {"image_size": 12, "patch_size": 4, "channels": 1, "classes": 5, "width": 8, "depth": 2, "mlp": 16}


def vit(**values) -> ViTConfig:
    return ViTConfig.model_validate({**SMALL, **values})


def test_a_mixer_is_named_by_its_import_path_and_survives_the_config_file():
    config = vit(mixer=TOY)
    again = ViTConfig.model_validate_json(config.model_dump_json())
    assert again == config
    assert isinstance(again.mixer, RelativeValuesConfig)
    net = build_model(again)
    initialise(net, seed=0)
    assert all(isinstance(layer.mixer, RelativeValues) for layer in net.layers)
    assert net(torch.randn(2, 1, 12, 12)).shape == (2, 5)


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        (
            "nowhere.mixers:Mixer",
            "No module named 'nowhere'; install its package or put its folder on PYTHONPATH",
        ),
        ("tests.toy_mixer:Missing", "kind=tests.toy_mixer:Missing: module tests.toy_mixer has no Missing"),
        ("tests.toy_mixer:NoConfig", "is no MixerConfig; derive it from models.mixers.interface.MixerConfig"),
        ("tests.toy_mixer:RelativeValues", "is no MixerConfig"),
        ("models.mixers.interface:MixerConfig", "is no MixerConfig"),
        ("translusion", "'translution', 'attention'"),
    ],
)
def test_a_kind_that_is_not_a_mixer_is_refused_in_one_line(kind, says):
    with pytest.raises(ValidationError) as refused:
        vit(mixer={"kind": kind})
    (problem,) = refused.value.errors()
    assert says in problem["msg"] or says in str(problem.get("ctx"))
    assert "\n" not in problem["msg"]


def test_an_unknown_key_of_the_users_own_mixer_is_named():
    with pytest.raises(ValidationError) as refused:
        vit(mixer={**TOY, "head_dims": 4})
    (problem,) = refused.value.errors()
    assert (problem["loc"], problem["type"]) == (("mixer", "head_dims"), "extra_forbidden")


BROKEN = {
    "no mixer": r"build\(\) gives Linear, no Mixer",
    "buffer": "layers.0.mixer.mask: no initial value of this buffer",
    "missing": "third.weight is no parameter; it has first.weight",
    "axis": "dimension 0 of first.weight is 'heads': 'head' or 'entry'",
    "dimension": "dimension 1 of first.bias is 'head'",
    "entry": "dimension 1 of first.weight: entries are dimension 0",
    "no draw": "layers.0.mixer.scale: no initial value",
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_mixer_that_breaks_a_rule_of_the_interface_is_refused_before_training(how):
    model = vit(mixer={"kind": "tests.toy_mixer:BrokenConfig", "how": how})
    with pytest.raises(UserError, match=f"^model: .*{BROKEN[how]}") as refused:
        check_trainable(model, ParallelConfig(), Mesh(), batch=4)
    assert "\n" not in str(refused.value)


def test_tied_and_frozen_weights_stay_so():
    net = parallelize(
        build_on_meta(vit(mixer={"kind": "tests.toy_mixer:TiedConfig"})),
        Mesh(),
        ParallelConfig(),
        0,
        torch.device("cpu"),
    )
    mixer = net.get_submodule("layers.0.mixer")
    assert mixer.second.weight is mixer.first.weight
    assert not mixer.second.bias.requires_grad
    assert net(torch.randn(2, 1, 12, 12)).isfinite().all()


def build_on_meta(config):
    with torch.device("meta"):
        return build_model(config)


def test_a_language_net_refuses_a_mixer_without_a_causal_form():
    with pytest.raises(ValidationError, match=r"mixer tests.toy_mixer:MeanConfig has no causal form"):
        GPTConfig.model_validate({"mixer": {"kind": "tests.toy_mixer:MeanConfig"}})


def test_a_config_built_in_python_names_its_own_kind():
    assert RelativeValuesConfig().kind == "tests.toy_mixer:RelativeValuesConfig"
    assert vit(mixer=RelativeValuesConfig()).mixer.kind == "tests.toy_mixer:RelativeValuesConfig"


def test_positions_that_a_mixer_does_not_apply_are_refused():
    with pytest.raises(ValidationError, match=r"position rope: mixer tests.toy_mixer.* applies no positions"):
        vit(mixer=TOY, position="rope")
    with pytest.raises(ValidationError, match=r"position rope: .*mixer.relative=qkv, only v fits"):
        vit(position={"kind": "rope"})


@pytest.mark.parametrize(
    ("old", "says"),
    [
        ({"mixers": [{"mixer": TOY, "layers": 2}]}, "mixers is no longer a key: write stages:"),
        ({"positions": "learned"}, "positions is no longer a key: write position:"),
        (
            {"mixer": {"kind": "attention", "rope": True}},
            "rope is no longer a key of mixers: write position:",
        ),
    ],
)
def test_old_keys_are_refused_with_the_new_ones(old, says):
    with pytest.raises(ValidationError, match=says):
        vit(**old)


def test_a_stage_may_have_a_position_of_its_own():
    attention = {"kind": "attention", "heads": 2, "head_dim": 4}
    stages = [{"layers": 1, "mixer": TOY}, {"layers": 1, "mixer": attention, "position": "rope"}]
    net = build_model(vit(stages=stages))
    assert net.positions is None
    assert isinstance(net.layers[1].mixer.attend, RotatedAttend)
    with pytest.raises(ValidationError, match=r"stages\[1\].position=learned: the net adds it"):
        vit(stages=[stages[0], {**stages[1], "position": "learned"}])


TOKENS = {"image": TokenGrid((4, 5), class_token=True), "text": TokenGrid((24,), causal=True)}
CONFIGS = {
    "attention": AttentionConfig(heads=4, head_dim=6),
    "translution": TranslutionConfig(heads=4, head_dim=6),
    "alpha": TranslutionConfig(heads=4, head_dim=6, rank=3),
    "values": TranslutionConfig(heads=4, head_dim=6, relative="v"),
    "keep": TranslutionConfig(heads=4, head_dim=6, memory="keep"),
}


@pytest.mark.parametrize("parts", [(1, 1), (2, 1), (1, 2)], ids=["whole", "half the heads", "half the pairs"])
@pytest.mark.parametrize("tokens", TOKENS.values(), ids=TOKENS)
@pytest.mark.parametrize("name", CONFIGS)
def test_costs_by_formula_are_near_the_measured_ones(name, tokens, parts):
    """Formulas count the element-wise work on pairs, the measurement does not; half the pairs of a small
    grid are not half of its classes."""
    with torch.device("meta"):
        mixer = CONFIGS[name].build(24, tokens, NoPosition())
    head_parts, pair_parts = parts if name != "attention" else (parts[0], 1)
    load = Load(samples=8, sizes=Sizes(), head_parts=head_parts, pair_parts=pair_parts)
    formula, measured = mixer.cost(load), measured_cost(mixer, load)
    assert measured.forward == pytest.approx(formula.forward, rel=0.2)
    if name != "attention":  # whose kernel computes the logits again, a fifth of its backward pass
        assert measured.recomputed == pytest.approx(formula.recomputed, rel=0.2)
    assert measured.saved == pytest.approx(formula.saved, rel=0.2)
    assert measured.head_gradients == formula.head_gradients
    assert measured.source_gradients == formula.source_gradients
    assert measured.partials == formula.partials


def test_a_reduction_lowers_the_tokens_of_the_layers_after_it():
    attention = {"kind": "attention", "heads": 2, "head_dim": 4}
    reduce = {"kind": "tests.toy_mixer:EverySecondConfig"}
    config = vit(depth=3, stages=[{"layers": 2, "reduce": reduce}, {"layers": 1, "mixer": attention}])
    assert [spec.tokens.num_tokens for spec in config.layer_specs()] == [10, 10, 6]
    net = build_model(config)
    seen = []
    for layer in net.layers:
        layer.mixer.register_forward_hook(lambda module, inputs, output: seen.append(output.shape[1]))
    assert net(torch.randn(2, 1, 12, 12)).shape == (2, 5)
    assert seen == [10, 10, 6]


def test_a_reducer_must_keep_as_many_tokens_as_it_says():
    lying = {"layers": 1, "reduce": {"kind": "tests.toy_mixer:LyingConfig"}}
    attention = {"kind": "attention", "heads": 2, "head_dim": 4}
    net = build_model(vit(mixer=attention, stages=[lying, {"layers": 1}]))
    with pytest.raises(ValueError, match="EverySecond gives 6 tokens where its config says 3"):
        net(torch.randn(1, 1, 12, 12))


def test_a_mixer_that_needs_a_grid_is_refused_after_a_reduction_that_breaks_it():
    reduce = {"kind": "tests.toy_mixer:EverySecondConfig"}
    with pytest.raises(ValidationError, match="knows offsets on a grid, and a `reduce` of an earlier stage"):
        vit(stages=[{"layers": 1, "reduce": reduce}, {"layers": 1}])


def test_a_language_net_reduces_no_tokens():
    stages = [{"layers": 1, "reduce": {"kind": "tests.toy_mixer:EverySecondConfig"}}]
    with pytest.raises(ValidationError, match="predicts every token"):
        GPTConfig.model_validate({"stages": stages})
    with pytest.raises(
        ValidationError, match=r"'every_second' found using 'kind' does not match any of .* 'evit'"
    ):
        vit(stages=[{"layers": 2, "reduce": {"kind": "every_second"}}])
