"""Both scripts from a data set in Parquet, evaluation included."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.runs import DIGITS, PRODUCER, TRAINER


def write_digits(folder: Path, name: str, count: int) -> Path:
    """The first digits of examples/ as Parquet, audio inside."""
    lines = (DIGITS / name / "metadata.csv").read_text().splitlines()[1 : count + 1]
    rows = [{"audio": {"bytes": (DIGITS / name / file).read_bytes(), "path": file}, "text": text}
            for file, text in (line.split(",")[:2] for line in lines)]  # fmt: skip
    folder.mkdir(exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), folder / f"{name}-00000-of-00001.parquet", row_group_size=4)
    return folder / f"{name}-00000-of-00001.parquet"


@pytest.mark.parametrize("streaming", [False, True])
def test_both_scripts_train_and_evaluate_from_parquet(run, tmp_path, streaming):
    train, evaluation = write_digits(tmp_path / "data", "train", 20), write_digits(tmp_path / "data", "eval", 8)
    run.settings["data.train_manifest"] = train if streaming else f"hf://{tmp_path / 'data'}:train"
    run.settings["data.streaming"] = streaming
    trainer = run.start(TRAINER, model__eval_steps=5, model__save_steps=5, data__eval_manifest=evaluation)
    producer = run.start(PRODUCER)
    code, out, err = producer.finish()
    assert code == 0, err
    assert "pushed 40 samples" in out
    code, out, err = trainer.finish()
    assert code == 0, err
    assert run.trained_positions() == list(range(40))
    assert "WER" in out
    lines = (run.output_dir / "trained_samples.jsonl").read_text().splitlines()
    ids = [name for line in lines for name in json.loads(line)["ids"]]
    assert len(set(ids)) == 20
