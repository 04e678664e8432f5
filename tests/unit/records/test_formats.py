import pytest

from gptj_batch.errors import ConfigError, InputError
from gptj_batch.records.formats import compression_of, delimiter_of, with_formats
from gptj_batch.records.locate import FoundFile


def found(*names: str, named: bool = False) -> list[FoundFile]:
    return [FoundFile(f"/data/{name}", 1, 0, named) for name in names]


def formats(*names: str, named: bool = False) -> dict[str, str]:
    return {file.path.removeprefix("/data/"): kind for file, kind in with_formats(found(*names, named=named), "auto")}


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.PARQUET", "parquet"),
        ("a.feather", "arrow"),
        ("a.jsonl", "jsonl"),
        ("a.ndjson.gz", "jsonl"),
        ("a.json", "jsonl"),
        ("a.csv.zst", "csv"),
        ("a.tsv.bz2", "csv"),
        ("a.b.csv", "csv"),
    ],
)
def test_a_format_follows_from_the_ending(name, kind):
    assert formats(name) == {name: kind}


def test_compression_and_delimiter_follow_from_the_ending():
    names = ("a.csv", "a.csv.gz", "a.tsv.bz2", "s3://b/a.tab.zst?region=x", "a.gz")
    assert [compression_of(name) for name in names] == [None, "gzip", "bz2", "zstd", "gzip"]
    assert [delimiter_of(name) for name in names] == [",", ",", "\t", "\t", ","]


def test_other_files_of_a_folder_are_left_alone():
    assert formats("a.parquet", "README.md", "dataset_info.json") == {"a.parquet": "parquet"}


def test_json_files_count_where_there_are_no_others_or_they_are_named():
    assert formats("a.json", "b.json.gz", "README.md") == {"a.json": "jsonl", "b.json.gz": "jsonl"}
    assert formats("a.json", "b.csv", named=True) == {"a.json": "jsonl", "b.csv": "csv"}


def test_several_formats_in_a_folder_are_refused_with_a_file_of_each():
    with pytest.raises(ConfigError, match=r'Parquet \(/data/a\.parquet\) and CSV \(/data/a\.csv\)\. .*"\*\.parquet"'):
        formats("a.parquet", "b.parquet", "a.csv")


def test_files_of_several_formats_can_be_named():
    assert formats("a.parquet", "b.arrow", "c.jsonl", named=True) == {
        "a.parquet": "parquet",
        "b.arrow": "arrow",
        "c.jsonl": "jsonl",
    }


def test_an_ending_that_says_nothing_is_refused_where_it_was_named_and_otherwise_only_if_it_is_alone():
    with pytest.raises(ConfigError, match=r"the ending of /data/a\.dat names no format; set input\.format"):
        formats("a.dat", named=True)
    with pytest.raises(InputError, match=r"no file ends as .*it leads to a\.dat, b\. Set input\.format"):
        formats("a.dat", "b")


def test_a_format_that_is_given_holds_for_every_file():
    assert [kind for _, kind in with_formats(found("a", "b.parquet"), "csv")] == ["csv", "csv"]
    with pytest.raises(ConfigError, match=r'input\.format: "orc" is not known; auto, parquet, arrow, jsonl, csv'):
        with_formats(found("a"), "orc")


def test_parquet_files_that_are_compressed_as_a_whole_are_refused():
    with pytest.raises(ConfigError, match=r"a\.parquet\.gz: Parquet files are compressed inside.*unpack"):
        formats("a.parquet.gz")
