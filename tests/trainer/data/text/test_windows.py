"""Order, resuming and exact perplexity of text for any number of ranks."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from models import GPTConfig, build_model
from parallel.errors import UserError
from tests.trainer.data.text.test_shards import write_corpus
from trainer.config.errors import ConfigError
from trainer.config.run import load_config
from trainer.data.text.datasets import ArrayTokens, BookConfig, OpenWebTextConfig
from trainer.data.text.windows import Corpus, TextSource
from trainer.metrics import IGNORED

MIXER = {"kind": "attention", "heads": 1, "head_dim": 4}
NET = {"vocabulary": 100, "tokens": 5, "width": 8, "depth": 1, "mlp": 8, "mixer": MIXER}


def net(**changes: object) -> GPTConfig:
    return GPTConfig.model_validate(NET | changes)


def numbered(train: int = 104, validation: int = 23, context: int = 5, seed: int = 0) -> TextSource:
    """Tokens are their own positions; the separator is 99."""
    corpus = Corpus(ArrayTokens(np.arange(train)), ArrayTokens(np.arange(validation)), 99)
    return TextSource(corpus, context, seed)


def sequence(source: TextSource, start: int, stop: int, batch: int, accumulate: int, world: int) -> list[int]:
    """The first token of every sample in [start, stop), from all ranks."""
    ranks = [source.train_batches(start, batch, accumulate, rank, world) for rank in range(world)]
    first: list[int] = []
    while start + len(first) < stop:
        for each in ranks:
            first += next(each).inputs[:, 0].tolist()
    return first


def test_a_sample_is_a_window_and_its_successor():
    source = numbered()
    batch = next(source.train_batches(0, 8))
    assert batch.inputs.shape == batch.targets.shape == (8, 5)
    assert batch.inputs.dtype == batch.targets.dtype == torch.int64
    assert torch.equal(batch.inputs + 1, batch.targets)
    assert torch.equal(batch.inputs, batch.inputs[:, :1] + torch.arange(5))


def test_an_epoch_predicts_no_token_twice_and_omits_less_than_two_windows():
    source = numbered()
    assert source.epoch_samples == 19
    for epoch in range(4):
        batches = source.train_batches(epoch * 19, 19)
        targets = next(batches).targets.flatten().tolist()
        assert len(set(targets)) == len(targets) == 95
    shifts = [min(sequence(source, e * 19, (e + 1) * 19, 19, 1, 1)) for e in range(8)]
    assert len(set(shifts)) > 1  # windows differ between epochs
    assert set(shifts) <= set(range(5))


def test_the_order_does_not_depend_on_world_size_or_accumulation():
    source, wanted = numbered(), sequence(numbered(), 0, 120, 24, 1, 1)
    for accumulate, world in ((1, 2), (2, 1), (3, 4), (2, 6)):
        assert sequence(source, 0, 120, 24, accumulate, world) == wanted
    assert sequence(numbered(seed=1), 0, 120, 24, 1, 1) != wanted


@pytest.mark.parametrize("stopped_at", [12, 24, 84])
@pytest.mark.parametrize("world", [1, 3, 4])
def test_a_resumed_run_gets_the_next_samples(stopped_at: int, world: int):
    wanted = sequence(numbered(), 0, 240, 12, 1, 2)
    assert sequence(numbered(), stopped_at, 240, 12, 1, world) == wanted[stopped_at:]


def validation_pairs(source: TextSource, batch: int, world: int) -> list[tuple[list[int], list[int]]]:
    rows = []
    for rank in range(world):
        for portion in source.evaluation_batches("validation", batch, rank, world):
            rows += list(zip(portion.inputs.tolist(), portion.targets.tolist(), strict=True))
    return rows


@pytest.mark.parametrize("validation", [1, 5, 6, 23, 25])
@pytest.mark.parametrize("world", [1, 2, 3, 7])
def test_every_validation_token_is_predicted_once_from_its_predecessors(validation: int, world: int):
    rows = validation_pairs(numbered(validation=validation), 2, world)
    predicted = [
        (target, before)
        for inputs, targets in rows
        for target, before in zip(targets, inputs, strict=True)
        if target != IGNORED
    ]
    assert sorted(predicted) == [(0, 99)] + [(token, token - 1) for token in range(1, validation)]


def test_ranks_have_the_same_number_of_batches_of_the_same_shapes():
    """Otherwise a rank would wait forever in a collective of the net."""
    source = numbered(validation=23)
    for world in (1, 2, 3, 4, 8):
        shapes = [
            [batch.inputs.shape for batch in source.evaluation_batches("validation", 2, rank, world)]
            for rank in range(world)
        ]
        assert all(each == shapes[0] for each in shapes)


@pytest.mark.parametrize("world", [1, 3])
def test_perplexity_equals_that_of_predicting_token_by_token(world: int):
    torch.manual_seed(0)
    tokens = torch.randint(100, (23,))
    corpus = Corpus(ArrayTokens(np.arange(20)), ArrayTokens(tokens.numpy()), 99)
    source, model = TextSource(corpus, 5, 0), build_model(net()).double().eval()
    losses = []
    for place in range(23):
        window = place // 5 * 5
        before = torch.cat((torch.tensor([99]), tokens))[window : place + 1]  # token t is at t + 1
        padded = torch.nn.functional.pad(before, (0, 5 - len(before)))
        logits = model(padded[None])[0, place - window]
        losses.append(-logits.log_softmax(-1)[tokens[place]].item())
    sums = sum(
        source.task.sums(model, batch)
        for rank in range(world)
        for batch in source.evaluation_batches("validation", 2, rank, world)
    )
    assert isinstance(sums, torch.Tensor)
    measures = source.task.metrics(sums.tolist())
    assert sums[1] == 23
    assert measures["perplexity"] == pytest.approx(math.exp(sum(losses) / 23), rel=1e-6)


def test_a_prepared_corpus_is_read_through_the_config(tmp_path: Path):
    write_corpus(tmp_path, np.arange(60), np.arange(12))
    source = OpenWebTextConfig(path=tmp_path, verify="checksum").build(net(), 0)
    assert torch.equal(
        next(source.train_batches(0, 4)).targets[:, 0], next(source.train_batches(0, 4)).inputs[:, 1]
    )
    assert validation_pairs(source, 2, 1)[0] == ([0, 0, 1, 2, 3], [0, 1, 2, 3, 4])


@pytest.mark.parametrize(
    ("changes", "validation", "message"),
    [
        ({"vocabulary": 99}, 12, "model.vocabulary=99: the tokens in .* need 100"),
        ({"tokens": 31}, 12, "model.tokens=31: .* has 60 training tokens; at least 62 are needed"),
        ({}, 0, "has no validation tokens; prepare it with a larger --validation-share"),
    ],
)
def test_a_corpus_that_does_not_fit_the_net_is_a_one_line_error(tmp_path: Path, changes, validation, message):
    write_corpus(tmp_path, np.arange(60), np.arange(validation))
    with pytest.raises(UserError, match=message):
        OpenWebTextConfig(path=tmp_path).build(net(**changes), 0)


def test_the_book_is_text_as_bytes():
    source = BookConfig(validation_share=0.02).build(net(vocabulary=256, tokens=40), 0)
    text = bytes(next(source.train_batches(0, 50)).inputs.flatten().tolist()).decode(errors="replace")
    assert sum(character.isalpha() or character == " " for character in text) > 0.85 * len(text)
    targets = [t for _, row in validation_pairs(source, 64, 1) for t in row if t != IGNORED]
    assert bytes(targets).decode(errors="ignore").endswith("rolled five thousand years ago.\n")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.vocabulary=255", "model.vocabulary=255: data.kind=book needs 256, one per byte"),
        ("data.validation_share=0", "data.validation_share=0: should be greater than 0"),
        ("data.kind=moving_mnist", "model.kind=gpt: data.kind=moving_mnist is images and needs vit"),
        ("model={kind: vit}", "model.kind=vit: data.kind=book is text and needs gpt"),
    ],
)
def test_data_that_does_not_fit_the_kind_of_net_is_a_one_line_error(
    tmp_path: Path, override: str, message: str
):
    path = tmp_path / "text.yaml"
    model = NET | {"kind": "gpt", "vocabulary": 256}
    data = {"kind": "book", **({} if "mnist" in override else {"validation_share": 0.02})}
    path.write_text(yaml.safe_dump({"model": model, "data": data, "train": {}}))
    load_config(path, [])
    with pytest.raises(ConfigError) as error:
        load_config(path, [override])
    assert message in str(error.value)


def test_a_language_net_learns_the_book(tmp_path: Path, translution):
    """From a config to a perplexity far below that of guessing."""
    path = tmp_path / "book.yaml"
    mixers = [
        {"kind": "translution", "heads": 1, "head_dim": 8},
        {"kind": "translution", "heads": 1, "head_dim": 8, "rank": 2},
    ]
    values = {
        "device": "cpu",
        "model": NET | {"kind": "gpt", "vocabulary": 256, "tokens": 8, "width": 16},
        "data": {"kind": "book", "validation_share": 0.002},
        "train": {"steps": 30, "batch": 32, "lr": 1e-2, "warmup_steps": 5},
        "study": {"model.mixer": mixers},
        "run_dir": str(tmp_path / "run"),
    }
    path.write_text(yaml.safe_dump(values))
    outcome = translution("train", path)
    assert outcome.code == 0, outcome.err
    rows = [line.rsplit(maxsplit=2) for line in outcome.out.splitlines() if line.startswith("Translution")]
    assert [row[0] for row in rows] == ["Translution", "Translution rank=2"]
    assert all(5 < float(row[-1]) < 40 for row in rows)
