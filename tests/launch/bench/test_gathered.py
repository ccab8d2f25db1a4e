"""`translution bench gathered` compares layers that compute the same."""

from launch.bench import gathered


def test_both_gathered_forms_equal_the_streamed_layer(monkeypatch):
    monkeypatch.setattr(gathered, "BATCH", 2)
    monkeypatch.setattr(gathered, "WIDTH", 12)
    monkeypatch.setattr(gathered, "HEAD_DIM", 4)
    table = gathered.bench_gathered(1)
    assert list(table.rows) == ["streamed", "gathered, as the equations", "gathered, batch as rows"]
    for form in list(table.rows)[1:]:
        assert float(table.rows[form]["largest relative difference"]) < 1e-5


def test_the_command_prints_the_table(translution, monkeypatch):
    for name, value in (("BATCH", 2), ("WIDTH", 12), ("HEAD_DIM", 4)):
        monkeypatch.setattr(gathered, name, value)
    outcome = translution("bench", "gathered", "--repeat", "1")
    assert outcome.code == 0
    assert "times slower" in outcome.out
