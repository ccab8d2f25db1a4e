"""The planner against nets that are really built, and steps that are really run."""

import json
import re
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
import yaml
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from models import GPTConfig, ModelConfig, ViTConfig, build_model
from models.ops import cross_entropy
from parallel.code_folder import CODE_FOLDER
from parallel.errors import UserError
from parallel.mesh import Mesh, ParallelConfig
from parallel.planner.flops import sample_flops
from parallel.planner.layers import LayerKinds
from parallel.planner.plan import plan
from parallel.planner.recommend import Cluster, recommend
from parallel.planner.units import parse_size, size_text
from parallel.spawn import run_processes
from tests.parallel.planner.planned_steps import Case, peaks
from trainer.config.run import load_config
from trainer.verify.nets import net_named

BASE = {"width": 768, "depth": 12, "mlp": 3072, "mixer": {"kind": "translution", "heads": 12}}
LARGE = {"width": 1024, "depth": 24, "mlp": 4096, "mixer": {"kind": "translution", "heads": 16}}
SMALL_VIT = {"image_size": 96, "classes": 10, "width": 96, "depth": 3, "mlp": 384}
SMALL_GPT = {"vocabulary": 500, "tokens": 48, "width": 96, "depth": 3, "mlp": 384}


def vit(**values: Any) -> ViTConfig:
    return ViTConfig.model_validate(values)


def gpt(**values: Any) -> GPTConfig:
    return GPTConfig.model_validate(values)


def test_vit_base_16_has_its_15_6_billion_parameters():
    assert sum(LayerKinds(vit(**BASE)).held(Mesh()).values()) == 15_608_200_168


MIXED = [
    {"layers": 1, "mixer": {"kind": "attention"}},
    {"layers": 2, "mixer": {"kind": "translution", "rank": 8}},
    {"layers": 1, "mixer": {"kind": "attention"}},
]


@pytest.mark.parametrize(
    "config",
    [
        vit(**BASE),
        vit(**{**SMALL_VIT, "depth": 4, "stages": MIXED}),
        vit(**SMALL_VIT, pool="mean", mixer={"kind": "translution", "relative": "v"}, position="rope"),
        gpt(**SMALL_GPT, tie_embeddings=True),
        gpt(**SMALL_GPT, mixer={"kind": "translution", "share": "log"}),
    ],
    ids=["base-16", "mixed", "rope-mean", "tied", "shared"],
)
def test_parameters_are_those_of_the_built_net(config: ModelConfig):
    with torch.device("meta"):
        net = build_model(config)
    assert sum(LayerKinds(config).held(Mesh()).values()) == sum(p.numel() for p in net.parameters())


def test_bank_bytes_of_a_rank_fall_as_one_over_offset():
    net = LayerKinds(vit(**BASE))
    whole = net.held(Mesh())["banks"]
    for ranks in (2, 4, 8, 16):
        shares = [net.held(Mesh(1, ranks, 1, rank))["banks"] for rank in range(ranks)]
        assert sum(shares) == whole
        assert max(shares) < 1.06 * whole / ranks


def test_a_plan_of_55_billion_parameters_and_a_recommendation_take_under_three_seconds():
    start = time.process_time()
    cluster = Cluster(nodes=4)
    net = LayerKinds(vit(**LARGE))
    found = plan(net, ParallelConfig(offset=32), Mesh(1, 32), 256, precision="bf16")
    assert found.total == 55_492_706_792
    best = recommend(net, 256, 1, "bf16", cluster)
    assert best is not None
    assert best.fits(cluster.memory)
    assert cluster.step_seconds(best) <= 1.1 * cluster.step_seconds(found)
    assert time.process_time() - start < 3


def test_nothing_is_recommended_where_nothing_fits():
    assert recommend(vit(**LARGE), 256, 1, "bf16", Cluster(nodes=1)) is None


def test_breakeven_batch_is_where_zero_3_begins_to_send_less():
    net = vit(**BASE)
    found = plan(net, ParallelConfig(offset=8), Mesh(1, 8), 256)
    assert found.breakeven_batch is not None
    assert 2000 < found.breakeven_batch < 5000  # roughly 4,000 without the feed-forward
    zero3 = plan(net, ParallelConfig(engine="deepspeed", zero=3), Mesh(8), found.breakeven_batch // 8 * 8)
    at = [plan(net, ParallelConfig(offset=8), Mesh(1, 8), found.breakeven_batch + more) for more in (-5, 5)]
    sent = [sum(each.sent.values()) for each in at]
    assert sent[0] < sum(zero3.sent.values()) < sent[1]


def test_flops_of_attention_are_those_torch_counts():
    config = vit(**SMALL_VIT, mixer={"kind": "attention", "heads": 3, "head_dim": 32})
    net = build_model(config)
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        net(torch.randn(1, 3, 96, 96))
    assert sample_flops(LayerKinds(config), Mesh(), ParallelConfig()).forward == counter.get_total_flops()


@pytest.mark.parametrize(
    ("config", "published"),
    [
        ("tost_t12", 1_020_076_416),
        ("tost_s12", 4_057_793_280),
        ("xcit_t12", 1_244_513_664),
        ("xcit_s12", 4_853_484_288),
        ("bixt_ti", 1_672_195_584),
    ],
)
def test_multiply_adds_are_the_published_ones_within_a_thousandth(config: str, published: int):
    model = load_config(CODE_FOLDER / "configs" / "imagenet" / f"{config}.yaml", []).model
    found = sample_flops(LayerKinds(model), Mesh(), ParallelConfig()).forward / 2
    assert found == pytest.approx(published, rel=1e-3)


def test_ranks_share_the_flops_of_the_pairs():
    net = LayerKinds(vit(**BASE))
    whole, shared = (sample_flops(net, Mesh(1, n), ParallelConfig()).forward for n in (1, 8))
    assert whole / 8 <= shared < whole / 7.7  # the busiest rank: 25 of 197 classes


ALONE = {
    "vit": Case(
        vit(**SMALL_VIT, mixer={"kind": "translution", "heads": 3, "head_dim": 32}), ParallelConfig(), 16
    ),
    "vit-block": Case(
        vit(**SMALL_VIT, mixer={"kind": "translution", "heads": 3, "head_dim": 32}),
        ParallelConfig(activations="block"),
        64,
    ),
    "alpha": Case(
        vit(**SMALL_VIT, mixer={"kind": "translution", "heads": 3, "head_dim": 32, "rank": 8}),
        ParallelConfig(),
        16,
    ),
    "attention-operator": Case(
        vit(**SMALL_VIT, mixer={"kind": "attention", "heads": 3, "head_dim": 32}),
        ParallelConfig(activations="operator"),
        16,
    ),
    "gpt": Case(
        gpt(**SMALL_GPT, mixer={"kind": "translution", "heads": 4, "head_dim": 24}), ParallelConfig(), 32, 2
    ),
    "keep": Case(
        vit(**SMALL_VIT, mixer={"kind": "translution", "heads": 3, "head_dim": 32, "memory": "keep"}),
        ParallelConfig(),
        4,
    ),
    "tost": Case(net_named("tost"), ParallelConfig()),
    "xcit-block": Case(net_named("xcit"), ParallelConfig(activations="block")),
    "bixt": Case(net_named("bixt"), ParallelConfig()),
    "combiner-mixture": Case(net_named("combiner-mixture"), ParallelConfig()),
}
TOGETHER = {
    "offset": ALONE["vit"]._replace(parallel=ParallelConfig(offset=2)),
    "offset-alpha-block": ALONE["alpha"]._replace(parallel=ParallelConfig(offset=2, activations="block")),
    "offset-bf16": ALONE["vit"]._replace(parallel=ParallelConfig(offset=2), precision="bf16"),
    "tensor": ALONE["gpt"]._replace(parallel=ParallelConfig(tensor=2)),
    "data": ALONE["vit"],
}


@pytest.mark.parametrize("name", ALONE)
def test_predicted_memory_is_within_a_tenth_of_the_measured(name: str):
    ((measured, predicted),) = peaks([ALONE[name]])
    assert predicted == pytest.approx(measured, rel=0.1)


@pytest.mark.parametrize("chunk", [1 << 26, 1 << 18], ids=["whole", "chunks"])
def test_predicted_memory_follows_the_chunks_of_the_loss(chunk: int, monkeypatch):
    monkeypatch.setattr(cross_entropy, "CHUNK_LOGITS", chunk)
    many_words = gpt(**{**SMALL_GPT, "vocabulary": 6000, "depth": 1}, mixer={"kind": "attention"})
    ((measured, predicted),) = peaks([Case(many_words, ParallelConfig(), 16)])
    assert predicted == pytest.approx(measured, rel=0.1)


@pytest.mark.soak
def test_predicted_memory_on_a_mesh_is_within_a_tenth_of_the_measured():
    for pairs in run_processes(peaks, 2, list(TOGETHER.values()), seconds=110):
        for name, (measured, predicted) in zip(TOGETHER, pairs, strict=True):
            assert predicted == pytest.approx(measured, rel=0.1), name


def test_a_batch_that_does_not_divide_is_refused():
    with pytest.raises(UserError, match=r"train.batch=10 is not divisible by train.accumulate=2 × 4 data"):
        plan(vit(**SMALL_VIT), ParallelConfig(), Mesh(4), 10, 2)


@pytest.mark.parametrize(
    ("text", "count"), [("80GB", 80e9), ("64 GiB", 64 * 2**30), ("1000", 1000), ("1.5t", 1.5e12)]
)
def test_sizes_are_read_as_written(text: str, count: float):
    assert parse_size(text, "--memory") == count


def test_sizes_have_three_digits():
    assert [size_text(n) for n in (0, 999, 15_608_200_168)] == ["0 B", "999 B", "15.6 GB"]


@pytest.fixture
def base_16(tmp_path):
    path = tmp_path / "b16.yaml"
    path.write_text(
        yaml.safe_dump(
            {
                "model": {"kind": "vit", **BASE},
                "data": {"kind": "imagenet", "path": "train", "evaluation_path": "test"},
                "train": {},
            }
        )
    )
    return path


def test_the_command_shows_a_plan_and_recommends(base_16, translution: Callable[..., Any]):
    shown = translution("plan", base_16, "parallel.offset=8", "train.batch=256", "precision=bf16")
    assert shown.code == 0, shown.err
    for words in ("15,608,200,168 parameters", "data 1 × offset 8 × tensor 1", "fits 80 GB", "Recommended:"):
        assert words in shown.out
    assert "kernels counted for NVIDIA H100 SXM, not measured" in shown.out


def test_a_card_brings_its_memory_and_teraflops_replace_its_kernels(base_16, translution: Callable[..., Any]):
    words = (base_16, "parallel.offset=8", "train.batch=256", "precision=bf16", "--json")
    h200, flops = (
        json.loads(translution("plan", *words, *more).out)
        for more in (("--card", "h200"), ("--teraflops", "100"))
    )
    assert h200["cluster"]["memory"] == 141e9
    assert h200["plan"]["step_seconds_basis"] == "kernels counted for NVIDIA H200, not measured"
    assert flops["plan"]["step_seconds_basis"] == "from FLOPs at 100 TFLOP/s"
    assert "--card v100: one of a100, h100, h200, b200" in translution("plan", *words, "--card", "v100").err


def test_the_command_says_everything_as_json(base_16, translution: Callable[..., Any]):
    shown = translution("plan", base_16, "parallel.offset=4", "--nodes", "2", "--memory", "40GB", "--json")
    values = json.loads(shown.out)
    assert values["plan"]["mesh"] == {"data": 4, "offset": 4, "tensor": 1}
    assert values["plan"]["fits"] is False
    assert values["recommended"]["memory"]["peak"] < 40e9


def test_the_plan_tells_the_share_rule_and_entries_of_each_kind_of_layer(
    base_16, translution: Callable[..., Any]
):
    shared, attention = "{kind: translution, heads: 12, share: log(1.5)}", "{kind: attention, heads: 12}"
    kinds = f"{{layers: 3, mixer: {shared}}}, {{layers: 7, mixer: {attention}}}"
    words = ("plan", base_16, f"model.stages=[{{layers: 2}}, {kinds}]", "--memory", "900GB")
    banks = json.loads(translution(*words, "--json").out)["plan"]["banks"]
    assert [tuple(bank.values()) for bank in banks] == [(2, "none", 732, 732), (3, "log(1.5)", 228, 732)]
    shown = translution(*words).out
    assert re.search(r"share +┃ layers +┃ offsets +┃ entries", shown)
    assert re.search(r"log\(1\.5\) +│ +3 +│ +732 +│ +228 ", shown)


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (("parallel.offset=300",), "parallel.offset=300 is more than the 196 residue classes"),
        (("parallel.offset=3",), "does not divide the 8 processes"),
        (("parallel.tensor=8",), "heads=12 is not divisible by parallel.tensor=8"),
        (("--memory", "lots"), "--memory=lots: expected a size"),
    ],
)
def test_bad_input_gives_one_line(
    base_16, translution: Callable[..., Any], words: tuple[str, ...], error: str
):
    shown = translution("plan", base_16, *words)
    assert shown.code != 0
    assert error in shown.err
    assert shown.err.count("\n") == 1


def test_the_table_has_the_papers_nets(translution: Callable[..., Any]):
    shown = translution("plan", "--table", "--json")
    nets = {(row["net"], row["mixer"]): row for row in json.loads(shown.out)}
    assert len(nets) == 75
    assert nets["ViT base/16", "Translution"]["parameters"] == 15_608_200_168
    assert nets["ViT base/16", "Translution"]["devices"] == 4
    assert nets["ViT base/16", "self-attention"]["devices"] == 1
    assert nets["ViT large/16", "Translution"]["devices"] == 16
