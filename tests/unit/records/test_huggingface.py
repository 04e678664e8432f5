import subprocess
import sys

import datasets
import pyarrow as pa
import pytest

from gptj_batch.errors import ConfigError, InputError
from gptj_batch.records.read import list_files, plan_units, read_unit

from .text_files import write_text


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


def rows(*arguments, **options) -> list[dict]:
    plan = plan_units(list_files(*arguments, **options), 3)
    return pa.concat_tables([read_unit(plan.unit(index)) for index in range(plan.num_units)]).to_pylist()


def numbers(start: int, stop: int) -> datasets.Dataset:
    return datasets.Dataset.from_dict(
        {"id": list(range(start, stop)), "text": [f"row {i}" for i in range(start, stop)]}
    )


def expected(start: int, stop: int) -> list[dict]:
    return [{"id": i, "text": f"row {i}"} for i in range(start, stop)]


@pytest.mark.parametrize("file_format", ["auto", "huggingface"])
def test_a_saved_dataset_is_its_files_and_not_what_map_left_beside_them(tmp_path, file_format):
    numbers(0, 10).save_to_disk(tmp_path / "saved", num_shards=3)
    loaded = datasets.load_from_disk(str(tmp_path / "saved"))
    loaded.map(lambda row: {"id": -row["id"]}, cache_file_name=str(tmp_path / "saved" / "cache-123.arrow"))
    assert len(list((tmp_path / "saved").glob("*.arrow"))) == 4
    assert rows(str(tmp_path / "saved"), file_format) == expected(0, 10)


def test_features_are_kept_as_the_columns_metadata(tmp_path):
    labels = datasets.Features({"label": datasets.ClassLabel(names=["a", "b"])})
    datasets.Dataset.from_dict({"label": [0, 1]}, features=labels).save_to_disk(tmp_path / "saved")
    assert b"ClassLabel" in list_files(str(tmp_path / "saved")).schema.metadata[b"huggingface"]


def test_one_split_of_a_saved_dictionary_is_read(tmp_path):
    splits = datasets.DatasetDict({"train": numbers(0, 4), "test": numbers(4, 6)})
    splits.save_to_disk(tmp_path / "saved")
    assert rows(str(tmp_path / "saved"), split="test") == expected(4, 6)
    with pytest.raises(ConfigError, match=r"input\.split: .*saved has the splits train, test; name one.*it is not set"):
        rows(str(tmp_path / "saved"))
    with pytest.raises(ConfigError, match=r'name one of them, got "dev"'):
        rows(str(tmp_path / "saved"), split="dev")


def test_a_folder_that_datasets_can_load_is_read_from_its_cache(tmp_path):
    write_text(tmp_path / "corpus" / "train.csv", "id,text\n0,row 0\n1,row 1\n")
    write_text(tmp_path / "corpus" / "test.csv", "id,text\n2,row 2\n")
    assert rows(str(tmp_path / "corpus"), "huggingface", split="train") == expected(0, 2)
    (info,) = (tmp_path / "cache").rglob("dataset_info.json")
    assert rows(str(info.parent), split="test") == expected(2, 3), "the cache itself, by its folder"
    (file,) = info.parent.glob("*-train.arrow")
    assert rows(str(file)) == expected(0, 2), "and by a file's name"


def test_a_name_that_cannot_be_loaded_is_one_message():
    with pytest.raises(InputError, match=r'the dataset "no/such-name" cannot be loaded: .*save_to_disk') as caught:
        list_files("no/such-name", "huggingface")
    assert len(str(caught.value)) < 700 and "\n" not in str(caught.value)


def test_a_slice_is_no_split():
    with pytest.raises(ConfigError, match=r'input\.split: "train\[:10\]" is no name of a split.*input\.limit'):
        list_files("squad", "huggingface", split="train[:10]")


def test_a_split_of_files_that_are_no_dataset_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"input\.split: it is for datasets"):
        list_files(str(tmp_path), "csv", split="train")


def test_the_library_is_not_loaded_by_who_reads_files(tmp_path):
    numbers(0, 2).save_to_disk(tmp_path / "saved")
    code = (
        "import sys; from gptj_batch.records.read import list_files; list_files(sys.argv[1]); "
        "print('datasets' in sys.modules)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "saved")]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "False\n"
