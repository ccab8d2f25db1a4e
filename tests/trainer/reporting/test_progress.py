"""Progress in files and pipes: one line at a time. (A terminal's bar is rich's.)"""

import re

import pytest

from trainer.reporting.progress import Progress


def test_a_counted_task_has_a_line_for_every_show(capsys: pytest.CaptureFixture[str]):
    with Progress(60, 30, label="net", unit="step", line_seconds=0) as progress:
        progress.advance()
        progress.show(40, "loss 1.5")
        progress.say("saved")
        progress.show(60, "loss 1.0")
    first, said, last = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"net  step 40/60  loss 1\.5  \d:\d\d:\d\d left", first)
    assert said == "saved"
    assert last == "net  step 60/60  loss 1.0  0:00:00 left"


def test_lines_in_per_cent_come_no_more_often_than_asked(capsys: pytest.CaptureFixture[str]):
    with Progress(1000, line_seconds=1e6) as seldom, Progress(1000, line_seconds=0) as often:
        for done in (0, 250, 1000):
            seldom.show(done, "3 documents")
            often.show(done, "5 documents")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0].strip() for line in lines] == ["25.0%", "100.0%"]
    assert "3 documents" not in "".join(lines)
