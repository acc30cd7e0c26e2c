import json

from hssl_hf.evaluation.records import Record


def test_records_are_lines_with_command_and_date(tmp_path):
    record = Record(
        metric="knn_top1", value=50.0, unit="percent", subject="export", dataset="d", revision=None, split="test", n=10,
        settings={"num_neighbors": 20}, seed=1,
    )  # fmt: skip
    record.append_to(tmp_path / "results.jsonl")
    record.append_to(tmp_path / "results.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert lines[0] == lines[1] and lines[0]["value"] == 50.0 and lines[0]["settings"] == {"num_neighbors": 20}
    assert lines[0]["command"] and lines[0]["date"].endswith("+00:00")
