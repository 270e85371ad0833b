"""Folders written by the library `datasets`."""

import shutil

import datasets
import pytest
from sources import TEXTS, write_arrow

from ml.data import DataError, TextFiles
from ml.data.preparation import find_sources


@pytest.fixture(autouse=True)
def no_progress_bars():
    datasets.disable_progress_bars()


def texts(path, **options):
    return [document.text for document in TextFiles(str(path), **options).documents()]


def test_a_saved_dataset_is_read_in_order(tmp_path):
    table = datasets.Dataset.from_dict({"text": TEXTS, "n": list(range(len(TEXTS)))})
    table.save_to_disk(tmp_path / "saved", num_shards=3)
    assert texts(tmp_path / "saved") == TEXTS
    assert [source.name[-6:] for source in find_sources([tmp_path / "saved"])] == [".arrow"] * 3
    table.select([4, 2]).save_to_disk(tmp_path / "selected")
    assert texts(tmp_path / "selected") == [TEXTS[4], TEXTS[2]]
    (tmp_path / "both").mkdir()
    shutil.copytree(tmp_path / "selected", tmp_path / "both" / "a")
    (tmp_path / "both" / "b.txt").write_text("and text")
    assert texts(tmp_path / "both") == [TEXTS[4], TEXTS[2], "and text"]


def test_the_splits_of_a_saved_dataset_are_never_mixed(tmp_path):
    parts = {"train": TEXTS[:3], "test": TEXTS[3:]}
    tables = {name: datasets.Dataset.from_dict({"text": part}) for name, part in parts.items()}
    datasets.DatasetDict(tables).save_to_disk(tmp_path / "saved")
    with pytest.raises(DataError, match=r"saved has the splits test, train: name one of them, such as .*saved/train"):
        texts(tmp_path / "saved")
    for name, part in parts.items():
        assert texts(tmp_path / "saved" / name) == part


def test_the_cache_is_read_without_results_of_transformations(tmp_path):
    (tmp_path / "dataset_info.json").write_text('{"splits": {"train": {}, "test": {}}}')
    for name, part in (
        ("a-train-00000-of-00002", TEXTS[:2]),
        ("a-train-00001-of-00002", TEXTS[2:3]),
        ("a-test", ["no"]),
    ):
        write_arrow(tmp_path / f"{name}.arrow", part)
    write_arrow(tmp_path / "cache-1234.arrow", ["no"])
    with pytest.raises(DataError, match=r'the splits test, train: choose one, such as TextFiles.pattern="\*-train\*"'):
        texts(tmp_path)
    assert texts(tmp_path, pattern="*-train*") == TEXTS[:3]
    (tmp_path / "a-test.arrow").unlink()
    assert texts(tmp_path) == TEXTS[:3]


def test_a_folder_with_another_state_is_no_dataset(tmp_path):
    (tmp_path / "state.json").write_text('{"text": "one"}')
    assert texts(tmp_path) == ["one"]


def test_an_index_of_rows_is_refused(tmp_path):
    datasets.Dataset.from_dict({"text": TEXTS}).save_to_disk(tmp_path / "saved")
    state = tmp_path / "saved" / "state.json"
    state.write_text(state.read_text().rstrip("}\n") + ', "_indices_files": [{"filename": "indices.arrow"}]}')
    with pytest.raises(DataError, match="saved selects rows by an index"):
        texts(tmp_path / "saved")
