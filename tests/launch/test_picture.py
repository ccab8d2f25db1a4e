"""`translution train --picture` ends with a picture and commands that work."""

import shlex
from collections.abc import Callable
from pathlib import Path

from PIL import Image

STUDY = "study={model.mixer: [{kind: translution, heads: 1}, {kind: attention, heads: 1}], seed: [0, 1]}"


def test_a_study_ends_with_its_picture_and_what_to_do_next(
    config_file: Path, tmp_path: Path, translution: Callable
):
    run = tmp_path / "runs" / "study"
    words = [STUDY, "train.steps=2", "data.test_samples=20", f"run_dir={run}"]
    done = translution("train", config_file, *words, "--picture", "--tag", "first", "--note", "a: b")
    assert done.code == 0, done.err
    picture, title, *commands = done.out.splitlines()[-5:]
    assert (picture, title) == (f"picture: {run / 'results.png'}", "next:")
    with Image.open(run / "results.png") as image:
        assert image.width > 500
    predict, tensorboard, runs = (shlex.split(command) for command in commands)
    assert tensorboard == ["tensorboard", "--logdir", str(run)]
    for words in (predict, runs):
        again = translution(*words[1:])
        assert again.code == 0, again.err
    assert "example.png" in translution(*predict[1:]).out
